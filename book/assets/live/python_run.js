"use strict";
// A small part of Python, run: the tree of python_parse.js, with the arrays of python_arrays.js.
//
//     const program = mllama.python.run("def twice(x):\n    return 2 * x");
//     program.call("twice", 21n)
//
// An int is a BigInt and a float a Number, True and None are true and null, text is text; a list is an Array, a
// tuple a Tuple, a dict a Map, a function a function of (arguments, [name, value] pairs). Nothing of the page can
// be reached: names, methods and attributes are looked up in tables of this folder alone.
(() => {
  const python = mllama.python;
  const {
    PyError, lacks, ELLIPSIS, NDArray, Tuple, Pair, Slice, LARGEST, made, work, operate, negate, getItem, setItem, put,
    asArray, METHODS, MODULES, withSignature, whole, number, halfEven, NONE,
  } = python;

  class Range { constructor(start, stop, step) { Object.assign(this, { start, stop, step }); } }
  class Thing { constructor(name, attributes) { Object.assign(this, { name, attributes: new Map(Object.entries(attributes)) }); } }
  class Lazy { constructor(name, values) { Object.assign(this, { name, values }); } }  // zip, enumerate, …
  const NOT_IMPLEMENTED = new Thing("NotImplementedType", {});

  function typeName(value) {
    if (value === null) return "NoneType";
    if (value === ELLIPSIS) return "ellipsis";
    const simple = { bigint: "int", number: "float", boolean: "bool", string: "str", function: "function" }[typeof value];
    if (simple) return simple;
    for (const [kind, name] of [[Tuple, "tuple"], [Array, "list"], [Map, "dict"], [NDArray, "ndarray"], [Slice, "slice"], [Range, "range"]])
      if (value instanceof kind) return name;
    return value.name ?? "object";
  }
  const typeError = message => new PyError("TypeError", message);

  // A value as Python's repr shows it, arrays shortened.
  function shown(value) {
    if (value === null) return "None";
    if (value === ELLIPSIS) return "Ellipsis";
    if (typeof value === "boolean") return value ? "True" : "False";
    if (typeof value === "bigint") return String(value);
    if (typeof value === "number") {
      if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
      const text = Object.is(value, -0) ? "-0" : String(value);
      const size = Math.abs(value);
      if (size >= 1e16 || (size && size < 1e-4)) return value.toExponential().replace(/e([+-])(\d)$/, "e$10$2");
      return /[.e]/.test(text) ? text : `${text}.0`;
    }
    if (typeof value === "string") return value.includes("'") && !value.includes('"') ? `"${value}"`
      : `'${value.replace(/[\\']/g, c => `\\${c}`).replace(/\n/g, "\\n").replace(/\t/g, "\\t")}'`;
    if (value instanceof Tuple) return `(${value.map(shown).join(", ")}${value.length === 1 ? "," : ""})`;
    if (Array.isArray(value)) return `[${Array.from(value, shown).join(", ")}]`;
    if (value instanceof Map) return `{${[...value.values()].map(([k, v]) => `${shown(k)}: ${shown(v)}`).join(", ")}}`;
    if (value instanceof NDArray) return value.size > 200 ? `array of shape ${shown(sizes(value))}` : `array(${shown(listed(value, short))})`;
    if (value instanceof Range) return `range(${value.start}, ${value.stop}${value.step === 1n ? "" : `, ${value.step}`})`;
    return `<${typeName(value)}>`;
  }
  const short = v => typeof v === "number" && Number.isFinite(v) ? Number(v.toPrecision(4)) : v;
  const sizes = x => Tuple.from(x.shape, BigInt);
  function listed(x, each = v => v) {
    if (!x.ndim) return each(x.value());
    return Array.from({ length: x.shape[0] }, (_, i) => listed(x.view(x.shape.slice(1), x.strides.slice(1), x.offset + i * x.strides[0]), each));
  }

  function truth(value) {
    if (value === null) return false;
    if (typeof value === "object") {
      if (value instanceof NDArray) {
        if (value.size === 1) return value.numbers()[0] !== 0;
        throw new PyError("ValueError", value.size ? "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
          : "The truth value of an empty array is ambiguous. Use `array.size > 0` to check that an array is not empty.");
      }
      if (Array.isArray(value)) return value.length > 0;
      if (value instanceof Map) return value.size > 0;
      if (value instanceof Range) return lengthOf(value) > 0;
      return true;
    }
    return Boolean(value);
  }

  function lengthOf(value) {
    if (typeof value === "string") return [...value].length;
    if (Array.isArray(value)) return value.length;
    if (value instanceof Map) return value.size;
    if (value instanceof Range) {
      const { start, stop, step } = value, span = step > 0n ? stop - start : start - stop, by = step > 0n ? step : -step;
      return span > 0n ? Number((span + by - 1n) / by) : 0;
    }
    if (value instanceof NDArray) {
      if (!value.ndim) throw typeError("len() of unsized object");
      return value.shape[0];
    }
    throw typeError(`object of type '${typeName(value)}' has no len()`);
  }

  function* iterate(value) {
    if (value instanceof Range) {
      for (let i = value.start; value.step > 0n ? i < value.stop : i > value.stop; i += value.step) { work(1); yield i; }
    } else if (value instanceof NDArray) {
      if (!value.ndim) throw typeError("iteration over a 0-d array");
      for (let i = 0; i < value.shape[0]; i++) yield getItem(value, BigInt(i));
    } else if (value instanceof Lazy) yield* value.values;
    else if (value instanceof Map) yield* [...value.values()].map(([key]) => key);
    else if (Array.isArray(value)) for (let i = 0; i < value.length; i++) { work(1); yield value[i]; }
    else if (typeof value === "string") yield* value;
    else throw typeError(`'${typeName(value)}' object is not iterable`);
  }

  // All of something, if there is room for it.
  function all(value) {
    const items = [];
    for (const item of iterate(value)) {
      items.push(item);
      roomy(items.length);
    }
    return items;
  }
  function roomy(length) {
    if (length > LARGEST) throw new PyError("MemoryError", "the page has room for a million items, not for more");
    return length;
  }

  // ---- Operators --------------------------------------------------------------------------

  const isNumber = value => ["bigint", "number", "boolean"].includes(typeof value);
  const isInt = value => typeof value === "bigint" || typeof value === "boolean";
  const divided = () => new PyError("ZeroDivisionError", "division by zero");
  const INTS = {
    "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b, "&": (a, b) => a & b, "|": (a, b) => a | b, "^": (a, b) => a ^ b,
    "<<": (a, b) => shifted(a, b), ">>": (a, b) => { if (b < 0n) throw new PyError("ValueError", "negative shift count"); return a >> (b > 100000n ? 100000n : b); },
    "/": (a, b) => { if (b === 0n) throw divided(); return float(a) / float(b); },
    "//": (a, b) => { if (b === 0n) throw divided(); return (a - ((a % b) + b) % b) / b; },
    "%": (a, b) => { if (b === 0n) throw divided(); return ((a % b) + b) % b; },
    "**": (a, b) => {
      if (b < 0n) return FLOATS["**"](float(a), float(b));
      if (a > 1n || a < -1n) fits(b * BigInt(a.toString(2).length));
      return a ** (a > 1n || a < -1n ? b : b > 1n ? 2n - b % 2n : b);
    },
  };
  const fits = bits => { if (bits > 20000n) throw new PyError("MemoryError", "the page has no room for such a large whole number"); };
  function shifted(a, b) {
    if (b < 0n) throw new PyError("ValueError", "negative shift count");
    fits(b);
    return a << b;
  }
  const float = value => {
    const result = Number(value);
    if (typeof value !== "number" && !Number.isFinite(result)) throw new PyError("OverflowError", "int too large to convert to float");
    return result;
  };
  const FLOATS = {
    "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b,
    "/": (a, b) => { if (b === 0) throw divided(); return a / b; },
    "//": (a, b) => { if (b === 0) throw divided(); return python.floorDivide(a, b); },
    "%": (a, b) => { if (b === 0) throw divided(); return python.modulo(a, b); },
    "**": (a, b) => {
      if (a === 0 && b < 0) throw new PyError("ZeroDivisionError", "zero to a negative power");
      if (a < 0 && Number.isFinite(a) && Number.isFinite(b) && !Number.isInteger(b)) throw lacks("complex numbers");
      const result = python.power(a, b);
      if (Math.abs(result) === Infinity && Number.isFinite(a) && Number.isFinite(b)) throw new PyError("OverflowError", "Result too large");
      return result;
    },
  };

  function binary(operator, a, b) {
    if (a instanceof NDArray || b instanceof NDArray) {
      for (const side of [a, b]) if (!isNumber(side) && !(side instanceof NDArray) && !Array.isArray(side)) throw unsupported(operator, a, b);
      return operate(operator, a, b);
    }
    if (isNumber(a) && isNumber(b)) {
      if (typeof a === "boolean" && typeof b === "boolean" && "&|^".includes(operator)) return { "&": a && b, "|": a || b, "^": a !== b }[operator];
      if (isInt(a) && isInt(b) && INTS[operator]) {
        const result = INTS[operator](BigInt(a), BigInt(b));
        if (typeof result === "bigint" && (result > 2n ** 64n || result < -(2n ** 64n))) fits(BigInt(result.toString(16).length * 4));
        return result;
      }
      if (FLOATS[operator]) return FLOATS[operator](float(a), float(b));
      throw unsupported(operator, a, b);
    }
    const kind = value => typeof value === "string" ? "str" : value instanceof Tuple ? "tuple" : Array.isArray(value) ? "list" : null;
    const join = (x, y) => typeof x === "string" ? x + y : kind(x) === "tuple" ? Tuple.from([...x, ...y]) : [...x, ...y];
    if (operator === "+" && kind(a) && kind(a) === kind(b)) {
      work(roomy(a.length + b.length) / 10);
      return join(a, b);
    }
    if (operator === "*" && ((kind(a) && isInt(b)) || (isInt(a) && kind(b)))) {
      const [items, times] = kind(a) ? [a, Number(b)] : [b, Number(a)], count = Math.max(0, times);
      work(roomy(items.length * count) / 10);
      if (typeof items === "string") return items.repeat(count);
      const many = Array.from({ length: count * items.length }, (_, i) => items[i % items.length]);
      return items instanceof Tuple ? Tuple.from(many) : many;
    }
    throw operator === "%" && typeof a === "string" ? lacks("% of text") : unsupported(operator, a, b);
  }
  const unsupported = (operator, a, b) => typeError(`unsupported operand type(s) for ${operator}: '${typeName(a)}' and '${typeName(b)}'`);

  function same(a, b) {
    if (isNumber(a) && isNumber(b)) return Number.isNaN(a) || Number.isNaN(b) ? false : plain(a) == plain(b);  // eslint-disable-line eqeqeq
    if (a instanceof NDArray || b instanceof NDArray) return truth(operate("==", a, b));
    if (Array.isArray(a) && Array.isArray(b) && a instanceof Tuple === b instanceof Tuple) {
      work(a.length / 5);
      return a.length === b.length && Array.from(a).every((item, i) => item === b[i] || same(item, b[i]));
    }
    if (a instanceof Map && b instanceof Map)
      return a.size === b.size && [...a].every(([key, [, value]]) => b.has(key) && same(value, b.get(key)[1]));
    return a === b;
  }
  const plain = value => typeof value === "boolean" ? BigInt(value) : value;

  function less(a, b, operator) {  // < or <=
    if (isNumber(a) && isNumber(b)) return operator === "<" ? plain(a) < plain(b) : plain(a) <= plain(b);
    if (typeof a === "string" && typeof b === "string") return operator === "<" ? a < b : a <= b;
    if (Array.isArray(a) && Array.isArray(b) && a instanceof Tuple === b instanceof Tuple) {
      for (let i = 0; i < Math.min(a.length, b.length); i++) if (!same(a[i], b[i])) return less(a[i], b[i], operator);
      return operator === "<" ? a.length < b.length : a.length <= b.length;
    }
    if (a instanceof NDArray || b instanceof NDArray) return truth(compare(operator, a, b));
    throw typeError(`'${operator}' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
  }

  function compare(operator, a, b) {
    if (operator === "in" || operator === "not in") return contains(b, a) === (operator === "in");
    if (operator === "is" || operator === "is not") return (a === b) === (operator === "is");
    const arrays = [a, b].some(side => side instanceof NDArray) && [a, b].every(side => isNumber(side) || side instanceof NDArray || Array.isArray(side));
    if (arrays) return operate(operator, a, b);
    if (operator === "==") return same(a, b);
    if (operator === "!=") return !same(a, b);
    try {
      if (operator[0] === "<") return less(a, b, operator);
      return less(b, a, operator.replace(">", "<"));
    } catch (error) {
      if (operator[0] === "<" || !/not supported/.test(error.message)) throw error;
      throw typeError(`'${operator}' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
    }
  }

  function contains(items, value) {
    if (items instanceof Map) return items.has(keyOf(value));
    if (typeof items === "string") {
      if (typeof value !== "string") throw typeError(`'in <string>' requires string as left operand, not ${typeName(value)}`);
      return items.includes(value);
    }
    if (items instanceof NDArray) return truth(METHODS.any([operate("==", items, value)], []));
    for (const item of iterate(items)) if (item === value || same(item, value)) return true;
    return false;
  }

  // A dict is a Map from what tells its keys apart to [key, value].
  function keyOf(key) {
    if (typeof key === "boolean") return BigInt(key);
    if (typeof key === "number" && Number.isInteger(key)) return BigInt(key);
    if (key instanceof Tuple) return `(${Array.from(key, one => `${typeof keyOf(one)} ${String(keyOf(one)).length} ${String(keyOf(one))}`).join()}`;
    if (typeof key === "string") return `"${key}`;
    if (key === null || ["bigint", "number", "function"].includes(typeof key)) return key;
    throw typeError(`unhashable type: '${typeName(key)}'`);
  }

  function get(value, key) {
    work(1);
    if (value instanceof NDArray) return getItem(value, key);
    if (value instanceof Map) {
      if (!value.has(keyOf(key))) throw new PyError("KeyError", shown(key));
      return value.get(keyOf(key))[1];
    }
    if (!Array.isArray(value) && typeof value !== "string" && !(value instanceof Range)) throw typeError(`'${typeName(value)}' object is not subscriptable`);
    const items = typeof value === "string" ? [...value] : value instanceof Range ? (key instanceof Slice ? all(value) : null) : value;
    const length = lengthOf(value), name = typeName(value) === "str" ? "string" : typeName(value);
    if (key instanceof Slice) {
      const { first, by, count } = python.sliceOf(key, length);
      work(count / 10);
      const part = Array.from({ length: count }, (_, i) => items[first + i * by]);
      return typeof value === "string" ? part.join("") : value instanceof Tuple ? Tuple.from(part) : part;
    }
    const at = position(key, length, name, "");
    return items ? items[at] : value.start + BigInt(at) * value.step;
  }

  function position(key, length, name, what) {
    if (!isInt(key) && !(key instanceof NDArray && !key.ndim && key.kind === "int"))
      throw typeError(`${name} ${name === "string" || name === "range" ? "indices must be integers" : "indices must be integers or slices"}, not ${typeName(key)}`);
    const at = whole(key);
    if (at < -length || at >= length) throw new PyError("IndexError", `${name} ${what}index out of range`);
    return at < 0 ? at + length : at;
  }

  function set(target, key, value) {
    if (target instanceof NDArray) {
      if (value !== null && !isNumber(value) && !(value instanceof NDArray) && !Array.isArray(value)) throw typeError(`float() argument must be a real number, not '${typeName(value)}'`);
      setItem(target, key, value);
    } else if (target instanceof Map) keep(target, key, value);
    else if (!Array.isArray(target) || target instanceof Tuple) throw typeError(`'${typeName(target)}' object does not support item assignment`);
    else if (key instanceof Slice) {
      const { first, by, count } = python.sliceOf(key, target.length);
      if (typeof value === "object" && value === null) throw typeError("must assign iterable to extended slice");
      const items = all(value);
      if (by === 1) replace(target, first, count, items);
      else if (items.length !== count) throw new PyError("ValueError", `attempt to assign sequence of size ${items.length} to extended slice of size ${count}`);
      else items.forEach((item, i) => { target[first + i * by] = item; });
    } else target[position(key, target.length, "list", "assignment ")] = value;
  }

  // A key that is there stays as it was first written.
  const keep = (dict, key, value) => dict.set(keyOf(key), [dict.get(keyOf(key))?.[0] ?? key, value]);

  // Put items into a list for `count` of its own.
  function replace(list, at, count, items) {
    const rest = list.slice(at + count);
    roomy(at + items.length + rest.length);
    list.length = at;
    for (const item of items) list.push(item);
    for (const item of rest) list.push(item);
  }

  function remove(target, key) {
    if (target instanceof Map) {
      if (!target.delete(keyOf(key))) throw new PyError("KeyError", shown(key));
    } else if (!Array.isArray(target) || target instanceof Tuple) throw typeError(`'${typeName(target)}' object doesn't support item deletion`);
    else if (key instanceof Slice) {
      const { first, by, count } = python.sliceOf(key, target.length);
      const gone = new Set(Array.from({ length: count }, (_, i) => first + i * by));
      replace(target, 0, target.length, target.filter((_, i) => !gone.has(i)));
    } else target.splice(position(key, target.length, "list", "assignment "), 1);
  }

  // ---- Attributes and built-in functions --------------------------------------------------

  const listMethods = {
    append: ["item", (list, item) => { list.push(item); roomy(list.length); return null; }],
    extend: ["items", (list, items) => { replace(list, list.length, 0, all(items)); return null; }],
    insert: ["at item", (list, at, item) => { list.splice(whole(at), 0, item); return null; }],
    pop: ["at=-1", (list, at) => {
      if (!list.length) throw new PyError("IndexError", "pop from empty list");
      return list.splice(position(at, list.length, "pop", ""), 1)[0];
    }],
    index: ["item", (list, item) => {
      const at = list.findIndex(one => one === item || same(one, item));
      if (at < 0) throw new PyError("ValueError", `${shown(item)} is not in list`);
      return BigInt(at);
    }],
    count: ["item", (list, item) => BigInt(list.filter(one => one === item || same(one, item)).length)],
    copy: ["", list => [...list]],
    reverse: ["", list => { list.reverse(); return null; }],
    sort: ["key=None reverse=False", (list, key, reverse) => { replace(list, 0, list.length, ordered(list, key, reverse)); return null; }],
  };
  const dictMethods = {
    get: ["key standard=None", (dict, key, standard) => dict.has(keyOf(key)) ? dict.get(keyOf(key))[1] : standard],
    keys: ["", dict => [...dict.values()].map(([key]) => key)],
    values: ["", dict => [...dict.values()].map(([, value]) => value)],
    items: ["", dict => [...dict.values()].map(pair => Tuple.from(pair))],
    setdefault: ["key standard=None", (dict, key, standard) => {
      if (!dict.has(keyOf(key))) keep(dict, key, standard);
      return dict.get(keyOf(key))[1];
    }],
    pop: ["key standard=-", (dict, key, standard) => {
      const found = dict.has(keyOf(key)) ? dict.get(keyOf(key))[1] : standard;
      if (found === NONE) throw new PyError("KeyError", shown(key));
      dict.delete(keyOf(key));
      return found;
    }],
  };
  const tables = new Map([[listMethods, new Map(Object.entries(listMethods))], [dictMethods, new Map(Object.entries(dictMethods))],
    [METHODS, new Map(Object.entries(METHODS))]]);

  function attribute(value, name) {
    if (value instanceof Thing || value instanceof Map && value.module) {
      const found = value.module ? value : value.attributes;
      if (found.has(name)) return found.get(name);
      if (value.module) throw lacks(`${value.module}.${name}`);
    } else if (value instanceof NDArray) {
      if (name === "shape") return sizes(value);
      if (name === "ndim") return BigInt(value.ndim);
      if (name === "T") return METHODS.transpose([value], []);
      if (name === "mT") return METHODS.transpose([value, -1n, -2n], []);
      if (name === "size") throw lacks("x.size, which NumPy and torch take differently: write x.shape");
      if (name === "repeat") throw lacks("x.repeat, which NumPy and torch take differently: write np.repeat, torch.repeat_interleave or np.tile");
      const method = tables.get(METHODS).get(name);
      if (!method) throw ["softmax", "log_softmax"].includes(name) ? lacks(`${name}, which is for you to write here`) : lacks(`x.${name} of an array`);
      return (args, named) => method([value, ...args], named);
    } else if (value instanceof Pair && ["values", "indices"].includes(name)) return value[name === "values" ? 0 : 1];
    else {
      const table = value instanceof Map ? dictMethods : Array.isArray(value) ? listMethods : null;
      const found = table && tables.get(table).get(name);
      if (found && (!(value instanceof Tuple) || ["index", "count"].includes(name)))
        return withSignature(name, found[0], (...args) => { work(value.length ?? 1); return found[1](value, ...args); });
      if (typeof value === "bigint" && name === "bit_length")
        return () => BigInt(value === 0n ? 0 : (value < 0n ? -value : value).toString(2).length);
      if (typeof value === "string" || table || value instanceof Slice) throw lacks(`.${name} of a ${typeName(value)}`);
    }
    throw new PyError("AttributeError", `'${typeName(value)}' object has no attribute '${name}'`);
  }

  function called(f, args, named = []) {
    if (typeof f !== "function") throw typeError(`'${typeName(f)}' object is not callable`);
    work(2);
    return f(args, named);
  }

  function ordered(items, key, reverse) {
    const list = all(items), keys = key === null ? list : list.map(item => called(key, [item]));
    const order = list.map((_, i) => i);
    if (truth(reverse)) order.reverse();
    order.sort((i, j) => less(keys[i], keys[j], "<") ? -1 : less(keys[j], keys[i], "<") ? 1 : 0);
    if (truth(reverse)) order.reverse();
    return order.map(i => list[i]);
  }

  function extreme(name, better) {
    return (args, named) => {
      const options = new Map(named), key = options.get("key") ?? null, items = args.length === 1 ? all(args[0]) : args;
      for (const word of options.keys()) if (!["key", "default"].includes(word)) throw typeError(`${name}() got an unexpected keyword argument '${word}'`);
      if (!args.length) throw typeError(`${name} expected at least 1 argument, got 0`);
      if (!items.length) {
        if (options.has("default")) return options.get("default");
        throw new PyError("ValueError", `${name}() iterable argument is empty`);
      }
      const keys = key === null ? items : items.map(item => called(key, [item]));
      let at = 0;
      for (let i = 1; i < items.length; i++) if (better(keys[i], keys[at])) at = i;
      return items[at];
    };
  }

  function scalar(value) {
    if (value instanceof NDArray && value.ndim) throw typeError("only 0-dimensional arrays can be converted to Python scalars");
    return value;
  }

  function toInt(value) {
    if (value instanceof NDArray) value = scalar(value).value();
    if (isInt(value)) return BigInt(value);
    if (typeof value === "number") {
      if (Number.isNaN(value)) throw new PyError("ValueError", "cannot convert float NaN to integer");
      if (!Number.isFinite(value)) throw new PyError("OverflowError", "cannot convert float infinity to integer");
      return BigInt(Math.trunc(value));
    }
    if (typeof value === "string") {
      if (/^\s*[+-]?\d+(_\d+)*\s*$/.test(value)) return BigInt(value.replace(/[_+\s]/g, ""));
      throw new PyError("ValueError", `invalid literal for int() with base 10: ${shown(value)}`);
    }
    throw typeError(`int() argument must be a string or a real number, not '${typeName(value)}'`);
  }

  function toFloat(value) {
    if (typeof value === "string") {
      const plain = value.trim().toLowerCase().replace(/^\+/, "");
      if (/^-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/.test(plain)) return Number(plain);
      if (/^-?(inf|infinity)$/.test(plain)) return plain[0] === "-" ? -Infinity : Infinity;
      if (/^-?nan$/.test(plain)) return NaN;
      throw new PyError("ValueError", `could not convert string to float: ${shown(value)}`);
    }
    if (value instanceof NDArray || isNumber(value)) {
      scalar(value);
      return float(value instanceof NDArray ? number(value) : value);
    }
    throw typeError(`float() argument must be a string or a real number, not '${typeName(value)}'`);
  }

  function round(value, digits) {
    if (value instanceof NDArray && digits === null) return METHODS.round([value], []);
    if (isInt(value) && digits === null) return BigInt(value);
    if (typeof value !== "number") throw isInt(value) || value instanceof NDArray ? lacks("round with digits for this") : typeError(`type ${typeName(value)} doesn't define __round__ method`);
    if (digits === null) return toInt(halfEven(value));
    const places = whole(digits);
    if (places < 0 || places > 20) throw lacks("round to so many digits");
    if (!Number.isFinite(value) || Math.abs(value) > 1e20) return value;
    const exact = Math.abs(value).toFixed(Math.min(100, places + 60)), cut = exact.length - 60 + Math.max(0, places + 60 - 100);
    const tie = /^50*$/.test(exact.slice(cut)), even = "02468".includes(exact.slice(0, cut).replace(/\.$/, "").at(-1));
    if (tie && even) return Math.sign(value) * Number(exact.slice(0, cut));
    return Number(value.toFixed(places));
  }

  const lazily = (name, values) => new Lazy(name, values);
  function* zipped(items) {
    const all_ = items.map(iterate);
    while (all_.length) {
      const next = [];
      for (const one of all_) {
        const { value, done } = one.next();
        if (done) return;
        next.push(value);
      }
      work(1);
      yield Tuple.from(next);
    }
  }
  function* numbered(items, start) {
    for (const item of iterate(items)) yield Tuple.from([start++, item]);
  }

  function builtins(program) {
    const table = [];
    const define = (name, signature, f) => table.push([name, withSignature(name, signature, f)]);
    define("len", "x", x => BigInt(lengthOf(x)));
    define("range", "start stop=- step=1", (start, stop, step) => {
      const [a, b, c] = stop === NONE ? [0n, start, 1n] : [start, stop, step];
      const [x, y, z] = [a, b, c].map(v => BigInt(whole_(v)));
      if (z === 0n) throw new PyError("ValueError", "range() arg 3 must not be zero");
      return new Range(x, y, z);
    });
    const whole_ = v => isInt(v) ? v : whole(v);
    define("sum", "items start=0", (items, start) => {
      let sum = start;
      for (const item of iterate(items)) sum = binary("+", sum, item);
      return sum;
    });
    define("abs", "x", x => {
      if (x instanceof NDArray) return METHODS.abs([x], []);
      if (!isNumber(x)) throw typeError(`bad operand type for abs(): '${typeName(x)}'`);
      return plain(x) < 0 ? -plain(x) : plain(x);
    });
    define("round", "number ndigits=None", round);
    define("sorted", "items key=None reverse=False", ordered);
    define("reversed", "items", items => lazily("reversed", all(items).reverse()));
    define("zip", "*items", items => lazily("zip", zipped(items)));
    define("enumerate", "items start=0", (items, start) => lazily("enumerate", numbered(items, BigInt(whole(start)))));
    define("map", "f items", (f, items) => lazily("map", (function* () { for (const item of iterate(items)) yield called(f, [item]); })()));
    define("int", "x=0", toInt);
    define("float", "x=0", toFloat);
    define("bool", "x=False", truth);
    define("list", "items=-", items => items === NONE ? [] : all(items));
    define("tuple", "items=-", items => items === NONE ? Tuple.of() : Tuple.from(all(items)));
    define("dict", "items=-", items => new Map(items === NONE ? [] : all(items).map(pair => [keyOf(pair[0]), [...pair]])));
    define("str", "x", x => typeof x === "string" ? x : shown(x));
    define("any", "items", items => { for (const item of iterate(items)) if (truth(item)) return true; return false; });
    define("all", "items", items => { for (const item of iterate(items)) if (!truth(item)) return false; return true; });
    define("divmod", "a b", (a, b) => Tuple.from([binary("//", a, b), binary("%", a, b)]));
    define("pow", "a b", (a, b) => binary("**", a, b));
    define("slice", "start stop=- step=None", (start, stop, step) => new Slice(stop === NONE ? [null, start, null] : [start, stop, step]));
    define("print", "*items", items => {
      program.printed += `${items.map(item => typeof item === "string" ? item : shown(item)).join(" ")}\n`;
      roomy(program.printed.length * 10);
      return null;
    });
    table.push(["max", extreme("max", (a, b) => less(b, a, "<"))], ["min", extreme("min", (a, b) => less(a, b, "<"))]);
    table.push(["NotImplemented", NOT_IMPLEMENTED], ...Object.entries(MODULES).map(([name, map]) => [name, Object.assign(map, { module: name })]));
    return new Map(table);
  }

  // ---- The tree ---------------------------------------------------------------------------

  // Where names are kept: of the program, of a call, of a comprehension.
  class Scope {
    constructor(outer, own = null) { Object.assign(this, { outer, own, names: new Map() }); }

    find(name) {
      for (let scope = this; scope; scope = scope.outer) {
        if (scope.names.has(name)) return scope.names.get(name);
        if (scope.own?.has(name)) throw new PyError("UnboundLocalError", `cannot access local variable '${name}' where it is not associated with a value`);
      }
      throw new PyError("NameError", `name '${name}' is not defined`);
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
        if (left) throw new PyError("SyntaxError", left.return !== undefined ? "'return' outside function" : "'break' or 'continue' outside loop");
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
        if (error instanceof RangeError) throw new PyError("RecursionError", "maximum recursion depth exceeded");
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
      if (!Object.hasOwn(MODULES, module)) throw lacks(`the module ${module}`);
      scope.names.set(name, MODULES[module]);
    }

    do_assign({ targets, value }, scope) {
      const given = this.value(value, scope);
      for (const target of targets) this.assign(target, given, scope);
    }

    do_augmented({ target, operator, value }, scope) {
      const held = target.type === "subscript" ? [this.value(target.value, scope), this.value(target.index, scope)] : null;
      const before = held ? get(...held) : this.value(target, scope), given = this.value(value, scope);
      let after;
      if (before instanceof NDArray && before.ndim) {  // in place, as NumPy does: whoever shares it sees it
        after = before;
        const result = asArray(binary(operator, before, given));
        if (python.higher(result.kind, before.kind) !== before.kind)
          throw typeError(`Cannot cast the result of ${operator}= from ${result.kind} to ${before.kind}`);
        if (result.ndim !== before.ndim || result.shape.some((n, d) => n !== before.shape[d]))
          throw new PyError("ValueError", `non-broadcastable output operand with shape ${python.told(before.shape)} doesn't match the broadcast shape ${python.told(result.shape)}`);
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
        if (one.type !== "subscript") throw lacks("del of names");
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
      else if (target.type === "subscript") set(this.value(target.value, scope), this.value(target.index, scope), value);
      else {
        const { items } = target, star = items.findIndex(one => one.type === "star");
        if (!(value instanceof Object) && typeof value !== "string") throw typeError(`cannot unpack non-iterable ${typeName(value)} object`);
        const values = all(value), more = values.length - items.length;
        if (star < 0 ? more > 0 : false) throw new PyError("ValueError", `too many values to unpack (expected ${items.length})`);
        if (more < (star < 0 ? 0 : -1)) throw new PyError("ValueError", `not enough values to unpack (expected ${items.length}, got ${values.length})`);
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
    of_binary({ operator, left, right }, scope) { return binary(operator, this.value(left, scope), this.value(right, scope)); }
    of_subscript({ value, index }, scope) { return get(this.value(value, scope), this.value(index, scope)); }
    of_slice({ parts }, scope) { return new Slice(parts.map(part => part ? this.value(part, scope) : null)); }
    of_choose({ test, value, other }, scope) { return this.value(truth(this.value(test, scope)) ? value : other, scope); }
    of_list({ items }, scope) { return this.items(items, scope); }
    of_tuple({ items }, scope) { return Tuple.from(this.items(items, scope)); }
    of_star({ line }) { throw new PyError("SyntaxError", "can't use starred expression here", line); }

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
      if (!isNumber(given) || (operator === "~" && !isInt(given))) throw typeError(`bad operand type for unary ${operator}: '${typeName(given)}'`);
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
      const function_ = this.value(f, scope), given = this.items(args, scope);
      return called(function_, given, named.map(([name, value]) => [name, this.value(value, scope)]));
    }

    of_def({ name, params, body, own }, scope) {
      const standards = params.map(({ standard }) => standard ? [this.value(standard, scope)] : null);
      const function_ = (args, named) => {
        const inner = new Scope(scope, own), names = params.map(param => param.name);
        if (args.length > names.length) throw typeError(`${name}() takes ${names.length} positional argument${names.length === 1 ? "" : "s"} but ${args.length} were given`);
        args.forEach((value, i) => inner.names.set(names[i], value));
        for (const [word, value] of named) {
          if (!names.includes(word)) throw typeError(`${name}() got an unexpected keyword argument '${word}'`);
          if (inner.names.has(word)) throw typeError(`${name}() got multiple values for argument '${word}'`);
          inner.names.set(word, value);
        }
        names.forEach((param, i) => {
          if (inner.names.has(param)) return;
          if (!standards[i]) throw typeError(`${name}() missing 1 required positional argument: '${param}'`);
          inner.names.set(param, standards[i][0]);
        });
        if (this.depth >= 100) throw new PyError("RecursionError", "maximum recursion depth exceeded");
        this.depth += 1;
        try {
          const left = this.block(body, inner);
          if (left?.loop) throw new PyError("SyntaxError", `'${left.loop}' outside loop`);
          return left ? left.return : null;
        } finally {
          this.depth -= 1;
        }
      };
      return Object.assign(function_, { pyName: name });
    }
  }

  Object.assign(python, {
    typeName, shown, iterate, listed, same, keyOf, Thing, NOT_IMPLEMENTED,
    thing: (name, attributes) => new Thing(name, attributes),
    dict: pairs => new Map(pairs.map(([key, value]) => [keyOf(key), [key, value]])),
    run: (text, given) => new Program(text, given),
  });
})();
