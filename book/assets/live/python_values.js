"use strict";
// The values of the small part of Python, but for arrays: what operators, indices and methods do with them, and
// the functions that are always there.
//
// An int is a BigInt and a float a Number, True and None are true and null, text is text; a list is an Array, a
// tuple a Tuple, a dict a Map, a function a function of (arguments, [name, value] pairs). Nothing of the page can
// be reached: names, methods and attributes are looked up in tables of this folder alone.
(() => {
  const { python } = mllama;
  const {
    refuse, lacks, ELLIPSIS, NDArray, Tuple, Pair, Slice, LARGEST, work, operate, getItem, setItem, METHODS,
    MODULES, withSignature, whole, number, halfEven, NONE,
  } = python;

  class Range { constructor(start, stop, step) { Object.assign(this, { start, stop, step }); } }
  class Lazy { constructor(name, values) { Object.assign(this, { name, values }); } }  // zip, enumerate, …
  class Thing {  // an object with attributes, which a check hands over
    constructor(name, attributes) { Object.assign(this, { name, attributes: new Map(Object.entries(attributes)) }); }
  }
  const NOT_IMPLEMENTED = new Thing("NotImplementedType", {});

  const TYPES = { bigint: "int", number: "float", boolean: "bool", string: "str", function: "function" };
  const CLASSES = [
    [Tuple, "tuple"], [Array, "list"], [Map, "dict"], [NDArray, "ndarray"], [Slice, "slice"], [Range, "range"],
  ];
  function typeName(value) {
    if (value === null) return "NoneType";
    if (value === ELLIPSIS) return "ellipsis";
    if (typeof value !== "object") return TYPES[typeof value];
    return CLASSES.find(([kind]) => value instanceof kind)?.[1] ?? value.name ?? "object";
  }
  const typeError = message => refuse("TypeError", message);

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
    if (value instanceof NDArray)
      return value.size > 200 ? `array of shape ${shown(sizes(value))}` : `array(${shown(listed(value, short))})`;
    if (value instanceof Range)
      return `range(${value.start}, ${value.stop}${value.step === 1n ? "" : `, ${value.step}`})`;
    return `<${typeName(value)}>`;
  }
  const short = v => typeof v === "number" && Number.isFinite(v) ? Number(v.toPrecision(4)) : v;
  const sizes = x => Tuple.from(x.shape, BigInt);
  function listed(x, each = v => v) {
    if (!x.ndim) return each(x.value());
    const row = i => x.view(x.shape.slice(1), x.strides.slice(1), x.offset + i * x.strides[0]);
    return Array.from({ length: x.shape[0] }, (_, i) => listed(row(i), each));
  }

  function truth(value) {
    if (value === null) return false;
    if (typeof value === "object") {
      if (value instanceof NDArray) {
        if (value.size === 1) return value.numbers()[0] !== 0;
        refuse("ValueError", `The truth value of an array of ${value.size} is ambiguous. Use a.any() or a.all()`);
      }
      if (Array.isArray(value)) return value.length > 0;
      if (value instanceof Map) return value.size > 0;
      if (value instanceof Range) return lengthOf(value) > 0;
      return true;
    }
    return Boolean(value);
  }

  function characters(text) {
    work(text.length / 20);
    return [...text];
  }

  function lengthOf(value) {
    if (typeof value === "string") return characters(value).length;
    if (Array.isArray(value)) return value.length;
    if (value instanceof Map) return value.size;
    if (value instanceof Range) {
      const { start, stop, step } = value, [span, by] = step > 0n ? [stop - start, step] : [start - stop, -step];
      return span > 0n ? Number((span + by - 1n) / by) : 0;
    }
    if (value instanceof NDArray) {
      if (!value.ndim) typeError("len() of unsized object");
      return value.shape[0];
    }
    typeError(`object of type '${typeName(value)}' has no len()`);
  }

  function* iterate(value) {
    if (value instanceof Range) {
      const { start, stop, step } = value;
      for (let i = start; step > 0n ? i < stop : i > stop; i += step) {
        work(1);
        yield i;
      }
    } else if (value instanceof NDArray) {
      if (!value.ndim) typeError("iteration over a 0-d array");
      for (let i = 0; i < value.shape[0]; i++) yield getItem(value, BigInt(i));
    } else if (value instanceof Lazy) yield* value.values;
    else if (value instanceof Map) yield* [...value.values()].map(([key]) => key);
    else if (Array.isArray(value)) {
      for (let i = 0; i < value.length; i++) {  // which the loop may make longer
        work(1);
        yield value[i];
      }
    } else if (typeof value === "string") yield* value;
    else typeError(`'${typeName(value)}' object is not iterable`);
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
    if (length > LARGEST) refuse("MemoryError", "the page has room for a million items, not for more");
    return length;
  }

  // ---- Operators --------------------------------------------------------------------------

  const isNumber = value => ["bigint", "number", "boolean"].includes(typeof value);
  const isInt = value => typeof value === "bigint" || typeof value === "boolean";
  const divisor = b => b == 0 ? refuse("ZeroDivisionError", "division by zero") : b;  // an int or a float
  const INTS = {
    "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b,
    "&": (a, b) => a & b, "|": (a, b) => a | b, "^": (a, b) => a ^ b,
    "<<": (a, b) => a << shift(b), ">>": (a, b) => a >> shift(b > 20000n ? 20000n : b),
    "/": (a, b) => float(a) / float(divisor(b)), "//": (a, b) => (a - ((a % divisor(b)) + b) % b) / b,
    "%": (a, b) => ((a % divisor(b)) + b) % b,
    "**": (a, b) => {
      if (b < 0n) return FLOATS["**"](float(a), float(b));
      if (a > 1n || a < -1n) fits(b * BigInt(a.toString(2).length));
      return a ** (a > 1n || a < -1n ? b : b > 1n ? 2n - b % 2n : b);
    },
  };
  function fits(bits) {
    if (bits > 20000n) refuse("MemoryError", "the page has no room for such a large whole number");
    return bits;
  }
  const shift = bits => bits < 0n ? refuse("ValueError", "negative shift count") : fits(bits);
  const float = value => {
    const result = Number(value);
    if (typeof value !== "number" && !Number.isFinite(result))
      refuse("OverflowError", "int too large to convert to float");
    return result;
  };
  const FLOATS = {
    "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b,
    "/": (a, b) => a / divisor(b), "//": (a, b) => python.floorDivide(a, divisor(b)),
    "%": (a, b) => python.modulo(a, divisor(b)),
    "**": (a, b) => {
      if (a === 0 && b < 0) refuse("ZeroDivisionError", "zero to a negative power");
      if (a < 0 && Number.isFinite(a) && Number.isFinite(b) && !Number.isInteger(b)) lacks("complex numbers");
      const result = python.power(a, b);
      if (Math.abs(result) === Infinity && Number.isFinite(a) && Number.isFinite(b))
        refuse("OverflowError", "Result too large");
      return result;
    },
  };

  function binary(operator, a, b) {
    if (a instanceof NDArray || b instanceof NDArray) {
      for (const side of [a, b])
        if (!isNumber(side) && !(side instanceof NDArray) && !Array.isArray(side)) unsupported(operator, a, b);
      return operate(operator, a, b);
    }
    if (isNumber(a) && isNumber(b)) {
      if (typeof a === "boolean" && typeof b === "boolean" && "&|^".includes(operator))
        return { "&": a && b, "|": a || b, "^": a !== b }[operator];
      if (isInt(a) && isInt(b) && INTS[operator]) {
        const result = INTS[operator](BigInt(a), BigInt(b));
        if (typeof result === "bigint" && (result > 2n ** 64n || result < -(2n ** 64n)))
          fits(BigInt(result.toString(16).length * 4));
        return result;
      }
      if (FLOATS[operator]) return FLOATS[operator](float(a), float(b));
      unsupported(operator, a, b);
    }
    const row = value => typeof value === "string" || Array.isArray(value);
    if (operator === "+" && row(a) && typeName(a) === typeName(b)) {
      work(roomy(a.length + b.length) / 10);
      return typeof a === "string" ? a + b : a instanceof Tuple ? Tuple.from([...a, ...b]) : [...a, ...b];
    }
    if (operator === "*" && ((row(a) && isInt(b)) || (isInt(a) && row(b)))) {
      const [items, times] = row(a) ? [a, Number(b)] : [b, Number(a)], count = Math.max(0, times);
      work(roomy(items.length * count) / 10);
      if (typeof items === "string") return items.repeat(count);
      const many = Array.from({ length: count * items.length }, (_, i) => items[i % items.length]);
      return items instanceof Tuple ? Tuple.from(many) : many;
    }
    if (operator === "%" && typeof a === "string") lacks("% of text");
    return unsupported(operator, a, b);
  }
  const unsupported = (operator, a, b) =>
    typeError(`unsupported operand type(s) for ${operator}: '${typeName(a)}' and '${typeName(b)}'`);

  function same(a, b) {
    if (isNumber(a) && isNumber(b))
      return Number.isNaN(a) || Number.isNaN(b) ? false : plain(a) == plain(b);  // eslint-disable-line eqeqeq
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
    typeError(`'${operator}' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
  }

  function compare(operator, a, b) {
    if (operator === "in" || operator === "not in") return contains(b, a) === (operator === "in");
    if (operator === "is" || operator === "is not") return (a === b) === (operator === "is");
    const numbers = side => isNumber(side) || side instanceof NDArray || Array.isArray(side);
    if ((a instanceof NDArray || b instanceof NDArray) && numbers(a) && numbers(b)) return operate(operator, a, b);
    if (operator === "==") return same(a, b);
    if (operator === "!=") return !same(a, b);
    try {
      if (operator[0] === "<") return less(a, b, operator);
      return less(b, a, operator.replace(">", "<"));
    } catch (error) {
      if (operator[0] === "<" || !/not supported/.test(error.message)) throw error;
      typeError(`'${operator}' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
    }
  }

  function contains(items, value) {
    if (items instanceof Map) return items.has(keyOf(value));
    if (typeof items === "string") {
      if (typeof value !== "string") typeError(`'in <string>' requires string as left operand, not ${typeName(value)}`);
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
    if (key instanceof Tuple)
      return `(${Array.from(key, one => JSON.stringify([typeof keyOf(one), String(keyOf(one))])).join()}`;
    if (typeof key === "string") return `"${key}`;
    if (key === null || ["bigint", "number", "function"].includes(typeof key)) return key;
    typeError(`unhashable type: '${typeName(key)}'`);
  }

  function get(value, key) {
    work(1);
    if (value instanceof NDArray) return getItem(value, key);
    if (value instanceof Map) {
      if (!value.has(keyOf(key))) refuse("KeyError", shown(key));
      return value.get(keyOf(key))[1];
    }
    if (!Array.isArray(value) && typeof value !== "string" && !(value instanceof Range))
      typeError(`'${typeName(value)}' object is not subscriptable`);
    const isPart = value instanceof Range && key instanceof Slice;
    const items = typeof value === "string" ? characters(value) : isPart ? all(value) : value;
    const length = lengthOf(value), name = typeName(value) === "str" ? "string" : typeName(value);
    if (key instanceof Slice) {
      const { first, by, count } = python.sliceOf(key, length);
      work(count / 10);
      const part = Array.from({ length: count }, (_, i) => items[first + i * by]);
      return typeof value === "string" ? part.join("") : value instanceof Tuple ? Tuple.from(part) : part;
    }
    const at = position(key, length, name, "");
    return value instanceof Range ? value.start + BigInt(at) * value.step : items[at];
  }

  function position(key, length, name, what) {
    if (!isInt(key) && !(key instanceof NDArray && !key.ndim && key.kind === "int"))
      typeError(`${name} indices must be integers or slices, not ${typeName(key)}`);
    const at = whole(key);
    if (at < -length || at >= length) refuse("IndexError", `${name} ${what}index out of range`);
    return at < 0 ? at + length : at;
  }

  function set(target, key, value) {
    if (target instanceof NDArray) {
      if (value !== null && !isNumber(value) && !(value instanceof NDArray) && !Array.isArray(value))
        typeError(`float() argument must be a real number, not '${typeName(value)}'`);
      setItem(target, key, value);
    } else if (target instanceof Map) keep(target, key, value);
    else if (!Array.isArray(target) || target instanceof Tuple)
      typeError(`'${typeName(target)}' object does not support item assignment`);
    else if (key instanceof Slice) {
      const { first, by, count } = python.sliceOf(key, target.length);
      if (typeof value === "object" && value === null) typeError("must assign iterable to extended slice");
      const items = all(value);
      if (by === 1) replace(target, first, count, items);
      else if (items.length !== count)
        refuse("ValueError", `attempt to assign sequence of size ${items.length} to extended slice of size ${count}`);
      else items.forEach((item, i) => { target[first + i * by] = item; });
    } else target[position(key, target.length, "list", "assignment ")] = value;
  }

  const dict = pairs => new Map(pairs.map(([key, value]) => [keyOf(key), [key, value]]));

  // A key that is there stays as it was first written.
  const keep = (dict, key, value) => dict.set(keyOf(key), [dict.get(keyOf(key))?.[0] ?? key, value]);

  // Put items into a list for `count` of its own.
  function replace(list, at, count, items) {
    const rest = list.slice(at + count);
    work((items.length + rest.length) / 20);
    roomy(at + items.length + rest.length);
    list.length = at;
    for (const item of items) list.push(item);
    for (const item of rest) list.push(item);
    return null;
  }

  function remove(target, key) {
    if (target instanceof Map) {
      if (!target.delete(keyOf(key))) refuse("KeyError", shown(key));
    } else if (!Array.isArray(target) || target instanceof Tuple)
      typeError(`'${typeName(target)}' object doesn't support item deletion`);
    else if (key instanceof Slice) {
      const { first, by, count } = python.sliceOf(key, target.length);
      const gone = new Set(Array.from({ length: count }, (_, i) => first + i * by));
      replace(target, 0, target.length, target.filter((_, i) => !gone.has(i)));
    } else replace(target, position(key, target.length, "list", "assignment "), 1, []);
  }

  // ---- Attributes and built-in functions --------------------------------------------------

  const listMethods = {
    append: ["item", (list, item) => { roomy(list.push(item)); return null; }],
    extend: ["items", (list, items) => replace(list, list.length, 0, all(items))],
    insert: ["at item", (list, at, item) => { list.splice(whole(at), 0, item); return null; }],
    pop: ["at=-1", (list, at) => {
      if (!list.length) refuse("IndexError", "pop from empty list");
      return list.splice(position(at, list.length, "pop", ""), 1)[0];
    }],
    index: ["item", (list, item) => {
      const at = list.findIndex(one => one === item || same(one, item));
      if (at < 0) refuse("ValueError", `${shown(item)} is not in list`);
      return BigInt(at);
    }],
    count: ["item", (list, item) => BigInt(list.filter(one => one === item || same(one, item)).length)],
    copy: ["", list => [...list]],
    reverse: ["", list => { list.reverse(); return null; }],
    sort: ["key=None reverse=False", (list, key, reverse) =>
      replace(list, 0, list.length, ordered(list, key, reverse))],
  };
  const dictMethods = {
    get: ["key standard=None", (dict, key, standard) => dict.has(keyOf(key)) ? dict.get(keyOf(key))[1] : standard],
    keys: ["", dict => [...dict.values()].map(([key]) => key)],
    values: ["", dict => [...dict.values()].map(([, value]) => value)],
    items: ["", dict => [...dict.values()].map(pair => Tuple.from(pair))],
  };
  const has = (table, name) => Object.hasOwn(table, name);  // and nothing that JavaScript adds

  function attribute(value, name) {
    if (value instanceof Thing || value instanceof Map && value.module) {
      const found = value.module ? value : value.attributes;
      if (found.has(name)) return found.get(name);
      if (value.module) lacks(`${value.module}.${name}`);
    } else if (value instanceof NDArray) {
      if (name === "shape") return sizes(value);
      if (name === "ndim") return BigInt(value.ndim);
      if (name === "T") return METHODS.transpose([value], []);
      if (name === "mT") return METHODS.transpose([value, -1n, -2n], []);
      if (name === "size") lacks("x.size, which NumPy and torch take differently: write x.shape");
      if (name === "repeat")
        lacks("x.repeat, which NumPy and torch take differently: write np.repeat, torch.repeat_interleave or np.tile");
      if (/^(log_)?softmax$/.test(name)) lacks(`${name}, which is for you to write here`);
      if (!has(METHODS, name)) lacks(`x.${name} of an array`);
      return (args, named) => METHODS[name]([value, ...args], named);
    } else if (value instanceof Pair && ["values", "indices"].includes(name)) return value[name === "values" ? 0 : 1];
    else {
      const table = value instanceof Map ? dictMethods : Array.isArray(value) ? listMethods : null;
      if (table && has(table, name) && (!(value instanceof Tuple) || ["index", "count"].includes(name))) {
        const [signature, f] = table[name];
        work(value.length ?? 1);
        return withSignature(name, signature, (...args) => f(value, ...args));
      }
      if (typeof value === "bigint" && name === "bit_length")
        return () => BigInt(value === 0n ? 0 : (value < 0n ? -value : value).toString(2).length);
      if (typeof value === "string" || table || value instanceof Slice) lacks(`.${name} of a ${typeName(value)}`);
    }
    refuse("AttributeError", `'${typeName(value)}' object has no attribute '${name}'`);
  }

  function called(f, args, named = []) {
    if (typeof f !== "function") typeError(`'${typeName(f)}' object is not callable`);
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
      for (const word of options.keys())
        if (!["key", "default"].includes(word)) typeError(`${name}() got an unexpected keyword argument '${word}'`);
      if (!args.length) typeError(`${name} expected at least 1 argument, got 0`);
      if (!items.length) {
        if (options.has("default")) return options.get("default");
        refuse("ValueError", `${name}() iterable argument is empty`);
      }
      const keys = key === null ? items : items.map(item => called(key, [item]));
      let at = 0;
      for (let i = 1; i < items.length; i++) if (better(keys[i], keys[at])) at = i;
      return items[at];
    };
  }

  function scalar(value) {
    if (value instanceof NDArray && value.ndim)
      typeError("only 0-dimensional arrays can be converted to Python scalars");
    return value;
  }

  function toInt(value) {
    if (value instanceof NDArray) value = scalar(value).value();
    if (isInt(value)) return BigInt(value);
    if (typeof value === "number") {
      if (Number.isNaN(value)) refuse("ValueError", "cannot convert float NaN to integer");
      if (!Number.isFinite(value)) refuse("OverflowError", "cannot convert float infinity to integer");
      return BigInt(Math.trunc(value));
    }
    if (typeof value === "string") {
      if (/^\s*[+-]?\d+(_\d+)*\s*$/.test(value)) return BigInt(value.replace(/[_+\s]/g, ""));
      refuse("ValueError", `invalid literal for int() with base 10: ${shown(value)}`);
    }
    typeError(`int() argument must be a string or a real number, not '${typeName(value)}'`);
  }

  function toFloat(value) {
    if (typeof value === "string") {
      const plain = value.trim().toLowerCase().replace(/^\+/, "");
      if (/^-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/.test(plain)) return Number(plain);
      if (/^-?(inf|infinity)$/.test(plain)) return plain[0] === "-" ? -Infinity : Infinity;
      if (/^-?nan$/.test(plain)) return NaN;
      refuse("ValueError", `could not convert string to float: ${shown(value)}`);
    }
    if (value instanceof NDArray || isNumber(value)) {
      scalar(value);
      return float(value instanceof NDArray ? number(value) : value);
    }
    typeError(`float() argument must be a string or a real number, not '${typeName(value)}'`);
  }

  function round(value, digits) {
    if (value instanceof NDArray && digits === null) return METHODS.round([value], []);
    if (isInt(value) && digits === null) return BigInt(value);
    if (isInt(value) || value instanceof NDArray) lacks("round with digits for this");
    if (typeof value !== "number") typeError(`type ${typeName(value)} doesn't define __round__ method`);
    if (digits === null) return toInt(halfEven(value));
    const places = whole(digits);
    if (places < 0 || places > 20) lacks("round to so many digits");
    if (!Number.isFinite(value) || Math.abs(value) > 1e20) return value;
    const exact = Math.abs(value).toFixed(places + 60), down = exact.slice(0, -60);  // toFixed rounds halves up
    const even = /^50*$/.test(exact.slice(-60)) && "02468".includes(down.replace(/\.$/, "").at(-1));
    return even ? Math.sign(value) * Number(down) : Number(value.toFixed(places));
  }

  function* zipped(items) {
    const sources = items.map(iterate);
    while (sources.length) {
      const next = [];
      for (const one of sources) {
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
      const [x, y, z] = [a, b, c].map(v => BigInt(index(v)));
      if (z === 0n) refuse("ValueError", "range() arg 3 must not be zero");
      return new Range(x, y, z);
    });
    const index = v => isInt(v) ? v : whole(v);
    define("sum", "items start=0", (items, start) => {
      let sum = start;
      for (const item of iterate(items)) sum = binary("+", sum, item);
      return sum;
    });
    define("abs", "x", x => {
      if (x instanceof NDArray) return METHODS.abs([x], []);
      if (!isNumber(x)) typeError(`bad operand type for abs(): '${typeName(x)}'`);
      return plain(x) < 0 ? -plain(x) : plain(x);
    });
    define("round", "number ndigits=None", round);
    define("sorted", "items key=None reverse=False", ordered);
    define("reversed", "items", items => new Lazy("reversed", all(items).reverse()));
    define("zip", "*items", items => new Lazy("zip", zipped(items)));
    define("enumerate", "items start=0", (items, start) =>
      new Lazy("enumerate", numbered(items, BigInt(whole(start)))));
    define("int", "x=0", toInt);
    define("float", "x=0", toFloat);
    define("bool", "x=False", truth);
    define("list", "items=-", items => items === NONE ? [] : all(items));
    define("tuple", "items=-", items => items === NONE ? Tuple.of() : Tuple.from(all(items)));
    define("dict", "items=-", items => dict(items === NONE ? [] : all(items)));
    define("str", "x", x => {
      const text = typeof x === "string" ? x : shown(x);
      work(text.length / 10);
      return text;
    });
    define("any", "items", items => all(items).some(truth));
    define("all", "items", items => all(items).every(truth));
    define("slice", "start stop=- step=None", (start, stop, step) =>
      stop === NONE ? new Slice(null, start, null) : new Slice(start, stop, step));
    define("divmod", "a b", (a, b) => Tuple.from([binary("//", a, b), binary("%", a, b)]));
    define("print", "*items", items => {
      program.printed += `${items.map(item => typeof item === "string" ? item : shown(item)).join(" ")}\n`;
      roomy(program.printed.length * 10);
      return null;
    });
    table.push(["max", extreme("max", (a, b) => less(b, a, "<"))], ["min", extreme("min", (a, b) => less(a, b, "<"))]);
    for (const [name, module] of Object.entries(MODULES)) table.push([name, Object.assign(module, { module: name })]);
    return new Map([...table, ["NotImplemented", NOT_IMPLEMENTED]]);
  }

  const ALWAYS = [...builtins({}).keys()].filter(name => !Object.hasOwn(MODULES, name));
  Object.assign(python, {
    ALWAYS, typeName, typeError, shown, listed, truth, iterate, all, roomy, isNumber, isInt, binary, same, compare,
    plain, keyOf, dict, keep, get, set, replace, remove, attribute, called, builtins, NOT_IMPLEMENTED,
    thing: (name, attributes) => new Thing(name, attributes),
  });
})();
