"use strict";
// A small part of Python, run: the tree of python_parse.js, with the values of python_values.js.
//
//     const program = mllama.python.run("def twice(x):\n    return 2 * x");
//     program.call("twice", 21n)
(() => {
  const { python } = mllama;
  const {
    PyError, refuse, lacks, told, NDArray, Tuple, Slice, MODULES, made, work, negate, put, asArray, higher, typeName,
    typeError, truth, iterate, all, roomy, isNumber, isInt, binary, compare, plain, keep, get, set, replace, remove,
    attribute, called, builtins,
  } = python;

  // Where names are kept: of the program, of a call, of a comprehension.
  class Scope {
    constructor(outer, own = null) { Object.assign(this, { outer, own, names: new Map() }); }

    find(name) {
      for (let scope = this; scope; scope = scope.outer) {
        if (scope.names.has(name)) return scope.names.get(name);
        if (scope.own?.has(name))
          refuse("UnboundLocalError", `cannot access local variable '${name}' where it is not associated with a value`);
      }
      refuse("NameError", `name '${name}' is not defined`);
    }
  }

  class Program {
    constructor(text, given = {}) {
      this.printed = "";
      this.depth = 0;
      this.guarded(() => {
        const tree = python.parse(text);
        this.scope = new Scope(new Scope(null));
        this.scope.outer.names = builtins(this);
        for (const [name, value] of Object.entries(given)) this.scope.names.set(name, value);
        const left = this.block(tree, this.scope);
        if (left)
          refuse("SyntaxError", `'${left.loop ?? "return"}' outside ${left.loop ? "loop" : "function"}`);
      });
    }

    has(name) { return this.scope.names.has(name); }
    get(name) { return this.scope.names.get(name); }

    // The function's result; what it took stands in mllama.python.made.
    call(name, ...args) { return this.guarded(() => called(this.get(name), args)); }

    guarded(act) {
      Object.assign(made, { work: 0, largest: 0, nan: false });
      try {
        return act();
      } catch (error) {
        if (error instanceof RangeError) refuse("RecursionError", "maximum recursion depth exceeded");
        throw error;
      }
    }

    // Runs statements; { return } or { loop } if they end what is around them.
    block(statements, scope) {
      for (const node of statements) {
        work(1);
        try {
          const left = this[`do_${node.type}`](node, scope);
          if (left) return left;
        } catch (error) {
          if (error instanceof PyError) error.line ??= node.line;
          throw error;
        }
      }
      return null;
    }

    do_expression({ value }, scope) { this.value(value, scope); }
    do_pass() {}
    do_break() { return { loop: "break" }; }
    do_continue() { return { loop: "continue" }; }
    do_return({ value }, scope) { return { return: value ? this.value(value, scope) : null }; }

    do_import({ module, name }, scope) {
      if (!Object.hasOwn(MODULES, module)) lacks(`the module ${module}`);
      scope.names.set(name, MODULES[module]);
    }

    do_assign({ targets, value }, scope) {
      const given = this.value(value, scope);
      for (const target of targets) this.assign(target, given, scope);
    }

    do_augmented({ target, operator, value }, scope) {
      const held = target.type === "subscript" && [target.value, target.index].map(part => this.value(part, scope));
      const before = held ? get(...held) : this.value(target, scope), given = this.value(value, scope);
      let after;
      if (before instanceof NDArray && before.ndim) {  // in place, as NumPy does: whoever shares it sees it
        after = before;
        const result = asArray(binary(operator, before, given));
        if (higher(result.kind, before.kind) !== before.kind)
          typeError(`Cannot cast the result of ${operator}= from ${result.kind} to ${before.kind}`);
        if (result.ndim !== before.ndim || result.shape.some((n, d) => n !== before.shape[d]))
          refuse("ValueError", `${operator}= cannot put ${told(result.shape)} into ${told(before.shape)}`);
        put(before, before.places(), before.shape, result);
      } else if (operator === "+" && Array.isArray(before) && !(before instanceof Tuple)) {
        if (given instanceof NDArray) after = binary("+", before, given);
        else {
          replace(before, before.length, 0, all(given));
          after = before;
        }
      } else after = binary(operator, before, given);
      if (held) set(...held, after);
      else this.assign(target, after, scope);
    }

    do_del({ target }, scope) {
      for (const one of target.type === "tuple" ? target.items : [target]) {
        if (one.type !== "subscript") lacks("del of names");
        remove(this.value(one.value, scope), this.value(one.index, scope));
      }
    }

    do_if({ test, body, other }, scope) { return this.block(truth(this.value(test, scope)) ? body : other, scope); }

    do_while({ test, body }, scope) {
      while (truth(this.value(test, scope))) {
        work(1);
        const left = this.block(body, scope);
        if (left?.loop === "break") break;
        if (left && !left.loop) return left;
      }
    }

    do_for({ target, over, body }, scope) {
      for (const item of iterate(this.value(over, scope))) {
        this.assign(target, item, scope);
        const left = this.block(body, scope);
        if (left?.loop === "break") break;
        if (left && !left.loop) return left;
      }
    }

    do_def(node, scope) { scope.names.set(node.name, this.value(node, scope)); }

    assign(target, value, scope) {
      if (target.type === "name") scope.names.set(target.name, value);
      else if (target.type === "subscript")
        set(this.value(target.value, scope), this.value(target.index, scope), value);
      else {
        const { items } = target, star = items.findIndex(one => one.type === "star");
        if (!(value instanceof Object) && typeof value !== "string")
          typeError(`cannot unpack non-iterable ${typeName(value)} object`);
        const values = all(value), more = values.length - items.length;
        if (star < 0 ? more > 0 : false) refuse("ValueError", `too many values to unpack (expected ${items.length})`);
        if (more < (star < 0 ? 0 : -1))
          refuse("ValueError", `not enough values to unpack (expected ${items.length}, got ${values.length})`);
        if (star >= 0) values.splice(star, more + 1, values.slice(star, star + more + 1));
        items.forEach((one, i) => this.assign(one.type === "star" ? one.value : one, values[i], scope));
      }
    }

    value(node, scope) {
      work(1);
      try {
        return this[`of_${node.type}`](node, scope);
      } catch (error) {
        if (error instanceof PyError) error.line ??= node.line;
        throw error;
      }
    }

    of_value({ value }) { return value; }
    of_name({ name }, scope) { return scope.find(name); }
    of_attribute({ value, name }, scope) { return attribute(this.value(value, scope), name); }
    of_not({ value }, scope) { return !truth(this.value(value, scope)); }
    of_binary({ operator, left, right }, scope) {
      return binary(operator, this.value(left, scope), this.value(right, scope));
    }
    of_subscript({ value, index }, scope) { return get(this.value(value, scope), this.value(index, scope)); }
    of_slice({ parts }, scope) { return new Slice(...parts.map(part => part ? this.value(part, scope) : null)); }
    of_choose({ test, value, other }, scope) {
      return this.value(truth(this.value(test, scope)) ? value : other, scope);
    }
    of_list({ items }, scope) { return this.items(items, scope); }
    of_tuple({ items }, scope) { return Tuple.from(this.items(items, scope)); }
    of_star({ line }) { refuse("SyntaxError", "can't use starred expression here", line); }

    items(items, scope) {
      return items.flatMap(one => one.type === "star" ? all(this.value(one.value, scope)) : [this.value(one, scope)]);
    }

    of_dict({ pairs }, scope) {
      const dict = new Map();
      for (const [key, value] of pairs) {
        const name = this.value(key, scope);
        keep(dict, name, this.value(value, scope));
      }
      return dict;
    }

    of_walrus({ name, value }, scope) {
      const given = this.value(value, scope);
      let home = scope;
      while (home.isComprehension) home = home.outer;
      home.names.set(name, given);
      return given;
    }

    of_logic({ word, left, right }, scope) {
      const first = this.value(left, scope);
      return truth(first) === (word === "or") ? first : this.value(right, scope);
    }

    of_unary({ operator, value }, scope) {
      const given = this.value(value, scope);
      if (given instanceof NDArray) return negate(operator, given);
      if (!isNumber(given) || (operator === "~" && !isInt(given)))
        typeError(`bad operand type for unary ${operator}: '${typeName(given)}'`);
      const one = plain(given);
      return operator === "-" ? -one : operator === "+" ? one : -one - 1n;
    }

    of_compare({ first, rest }, scope) {
      let left = this.value(first, scope), result = true;
      for (const [operator, node] of rest) {
        const right = this.value(node, scope);
        result = compare(operator, left, right);
        if (node !== rest.at(-1)[1] && !truth(result)) return result;
        left = right;
      }
      return result;
    }

    of_comprehension({ into, element, clauses }, scope) {
      const found = into === "dict" ? new Map() : [];
      const go = (n, outer) => {
        if (n === clauses.length) {
          const values = element[0].type === "star" ? null : element.map(one => this.value(one, outer));
          if (into === "dict") keep(found, ...values);
          else found.push(values[0]);
          roomy(found.length ?? found.size);
          return;
        }
        const { target, over, tests } = clauses[n], inner = Object.assign(new Scope(outer), { isComprehension: true });
        for (const item of iterate(this.value(over, outer))) {
          this.assign(target, item, inner);
          if (tests.every(test => truth(this.value(test, inner)))) go(n + 1, inner);
        }
      };
      go(0, scope);
      return found;
    }

    of_call({ called: f, args, named }, scope) {
      const made_function = this.value(f, scope), given = this.items(args, scope);
      return called(made_function, given, named.map(([name, value]) => [name, this.value(value, scope)]));
    }

    of_def({ name, params, body, own }, scope) {
      const standards = params.map(({ standard }) => standard ? [this.value(standard, scope)] : null);
      const made_function = (args, named) => {
        const inner = new Scope(scope, own), names = params.map(param => param.name);
        if (args.length > names.length)
          typeError(`${name}() takes ${names.length} positional arguments but ${args.length} were given`);
        args.forEach((value, i) => inner.names.set(names[i], value));
        for (const [word, value] of named) {
          if (!names.includes(word)) typeError(`${name}() got an unexpected keyword argument '${word}'`);
          if (inner.names.has(word)) typeError(`${name}() got multiple values for argument '${word}'`);
          inner.names.set(word, value);
        }
        names.forEach((param, i) => {
          if (inner.names.has(param)) return;
          if (!standards[i]) typeError(`${name}() missing 1 required positional argument: '${param}'`);
          inner.names.set(param, standards[i][0]);
        });
        if (this.depth >= 100) refuse("RecursionError", "maximum recursion depth exceeded");
        this.depth += 1;
        try {
          const left = this.block(body, inner);
          if (left?.loop) refuse("SyntaxError", `'${left.loop}' outside loop`);
          return left ? left.return : null;
        } finally {
          this.depth -= 1;
        }
      };
      return Object.assign(made_function, { pyName: name });
    }
  }

  Object.assign(python, { run: (text, given) => new Program(text, given) });
})();
