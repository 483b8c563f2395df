"use strict";
// What `np`, `torch`, `math` and arrays themselves offer in the small part of Python: one table, whose functions
// go by NumPy's names and by torch's. Where the two mean different things by one name, the name is refused.
(() => {
  const python = mllama.python;
  const {
    refuse, lacks, NDArray, Tuple, Pair, array, asArray, room, product, higher, broadcast, elementwise,
    operate, matmul, axisOf, reshape, permute, concatenate, stack, insert, reduce, getItem, cast, along, axesOf, Slice,
  } = python;
  const NONE = Symbol("not given");

  // A function with a signature as Python's: define("sum", "x axis=None", f).
  function withSignature(name, signature, f) {
    const params = signature.split(" ").filter(Boolean).map(one => one.split("="));
    const rest = params.at(-1)?.[0].startsWith("*") ? params.pop()[0].slice(1) : null;
    const standards = { None: null, False: false, True: true, 0: 0n, 1: 1n, "-1": -1n, "-": NONE };
    const call = (args, named) => {
      const given = args.slice(0, params.length), more = args.slice(params.length);
      if (more.length && !rest)
        refuse("TypeError", `${name}() takes ${params.length} positional arguments but ${args.length} were given`);
      for (const [word, value] of named) {
        const at = params.findIndex(([param]) => param.split("|").includes(word));
        if (at < 0) refuse("TypeError", `${name}() got an unexpected keyword argument '${word}'`);
        if (given[at] !== undefined) refuse("TypeError", `${name}() got multiple values for argument '${word}'`);
        given[at] = value;
      }
      params.forEach(([param, standard], i) => {
        if (given[i] !== undefined) return;
        if (standard === undefined)
          refuse("TypeError", `${name}() missing a required argument: '${param.split("|")[0]}'`);
        given[i] = standards[standard];
      });
      return rest ? f(...given, more) : f(...given);
    };
    return Object.assign(call, { pyName: name });
  }

  const whole = value => {  // an int, or an array of one
    if (value instanceof NDArray && value.size === 1 && value.kind === "int") value = value.value();
    if (typeof value === "boolean") return Number(value);
    if (typeof value !== "bigint")
      refuse("TypeError", `'${python.typeName(value)}' object cannot be interpreted as an integer`);
    return Number(value);
  };
  // The numbers of f(2, 3), or of f((2, 3)).
  const listOf = given => given.length === 1 && Array.isArray(given[0]) ? [...given[0]] : given;
  const shapeOf = sizes => listOf(sizes).map(whole);
  const kindOf = dtype => {
    const kind = dtype?.kindName ?? dtype?.pyName;  // torch.bool, or the function bool
    return ["bool", "int", "float"].includes(kind) ? kind : lacks("this dtype");
  };
  const filled = (sizes, value, dtype, standard) => {
    const shape = shapeOf(sizes), kind = dtype === null ? standard : kindOf(dtype);
    return array(room(shape).fill(value), shape, kind);
  };
  const typed = (x, dtype) => dtype === null ? x : cast(x, kindOf(dtype));
  const range = (start, stop, step) => {
    const parts = [start, stop, step].map(asArray), kind = parts.some(x => x.kind === "float") ? "float" : "int";
    const [a, b, c] = parts.map(x => x.numbers()[0]);
    if (c === 0) refuse("ZeroDivisionError", "the step of arange is zero");
    const length = Math.max(0, Math.ceil((b - a) / c));
    return array(room([length]).map((_, i) => a + i * c), [length], kind);
  };
  const total = numbers => {
    let sum = 0;
    for (const number of numbers) sum += number;
    return sum;
  };
  const best = better => numbers => {
    let at = 0;
    numbers.forEach((v, i) => {
      if (!Number.isNaN(numbers[at]) && (Number.isNaN(v) || better(v, numbers[at]))) at = i;
    });
    return at;
  };
  const argBest = { max: best((v, w) => v > w), min: best((v, w) => v < w) };
  const counted = kind => kind === "bool" ? "int" : kind;
  function extreme(which, x, axis, keep) {
    if (!x.size) refuse("ValueError", `zero-size array to reduction operation ${which} which has no identity`);
    return reduce(x, axis, keep, numbers => numbers[argBest[which](numbers)], x.kind);
  }
  function arg(which, x, axis, keep) {
    if (!x.size) refuse("ValueError", `attempt to get arg${which} of an empty sequence`);
    return reduce(x, axis, keep, argBest[which], "int");
  }
  const pair = (which, x, dim, keep) => Pair.from([extreme(which, x, dim, keep), arg(which, x, dim, keep)]);
  const oneByOne = f => x => elementwise(f, "float", x);
  const sameKind = f => x => elementwise(f, x.kind, x);
  const either = f => (x, y) => elementwise(f, higher(x.kind, asArray(y).kind), x, asArray(y));
  const halfEven = v => {
    const down = Math.floor(v), over = v - down;
    const up = over > 0.5 || (over === 0.5 && down % 2 !== 0);
    return (up ? down + 1 : down) || 0 * v;
  };
  const flat = (x, start, end) => {
    const [s, e] = [axisOf(start, Math.max(x.ndim, 1)), axisOf(end, Math.max(x.ndim, 1))];
    return reshape(x, [...x.shape.slice(0, s), product(x.shape.slice(s, e + 1)), ...x.shape.slice(e + 1)]);
  };
  const triangle = keeps => (x, k) => {
    if (x.ndim < 2) refuse("ValueError", "the array must have two dimensions or more");
    const [rows, columns] = x.shape.slice(-2), numbers = x.numbers();
    const kept = numbers.map((v, i) => keeps(i % columns - Math.floor(i / columns) % rows, whole(k)) ? v : 0);
    return array(kept, x.shape, x.kind);
  };
  const part = (x, d, from, to) => getItem(x, along(d, new Slice(BigInt(from), BigInt(to), null)));
  function split(x, size, axis) {
    const d = axisOf(axis, x.ndim), parts = Array.isArray(size) ? size.map(whole) : null;
    const each = parts ? 0 : whole(size);
    if (!parts && each < 1) refuse("RuntimeError", "split expects a size of 1 or more");
    if (parts && total(parts) !== x.shape[d]) refuse("RuntimeError", "the sizes of a split have to add up");
    const sizes = parts ?? Array.from({ length: Math.ceil(x.shape[d] / each) }, () => each);
    let start = 0;
    return Tuple.from(sizes.map(length => part(x, d, start, start += length)));
  }
  function interleave(x, times, axis) {
    const d = axis === null ? 0 : axisOf(axis, x.ndim);
    const from = axis === null ? reshape(x, [x.size]) : x, repeats = asArray(times).numbers();
    if (repeats.length !== 1 && repeats.length !== from.shape[d])
      refuse("ValueError", "operands could not be broadcast together");
    if (repeats.some(n => n < 0)) refuse("ValueError", "repeats may not contain negative values.");
    const often = i => repeats[repeats.length === 1 ? 0 : i];
    room([total(Array.from({ length: from.shape[d] }, (_, i) => often(i)))]);
    const index = Array.from({ length: from.shape[d] }, (_, i) => Array(often(i)).fill(i)).flat();
    return getItem(from, along(d, array(Float64Array.from(index), [index.length], "int")));
  }
  function tile(x, times) {
    const counts = shapeOf(times), ndim = Math.max(counts.length, x.ndim);
    let made = reshape(x, [...Array(ndim - x.ndim).fill(1), ...x.shape]);
    [...Array(ndim - counts.length).fill(1), ...counts].forEach((count, d) => {
      room([made.size * Math.max(count, 0)]);
      made = count ? concatenate(Array(count).fill(made), BigInt(d)) : part(made, d, 0, 0);
    });
    return made.copy();
  }
  function roll(x, shift, axis) {
    if (axis === null) return reshape(roll(reshape(x, [x.size]), shift, 0n), x.shape);
    const d = axisOf(axis, x.ndim), length = x.shape[d], by = length ? python.modulo(whole(shift), length) : 0;
    return concatenate([part(x, d, length - by, length), part(x, d, 0, length - by)], axis);
  }
  function cumulate(x, axis) {
    if (axis === null) return cumulate(reshape(x, [x.size]), 0n);
    const d = axisOf(axis, x.ndim), order = [...x.shape.keys()].filter(e => e !== d).concat(d), length = x.shape[d];
    const numbers = permute(x, order.map(BigInt)).numbers();
    for (let i = 0; i < numbers.length; i++) if (i % length) numbers[i] += numbers[i - 1];
    const done = array(numbers, order.map(e => x.shape[e]), counted(x.kind));
    return permute(done, x.shape.map((_, e) => BigInt(order.indexOf(e))));
  }
  function sorted(x, axis) {
    const d = axisOf(axis, x.ndim), swap = [...x.shape.keys()].map(BigInt);
    [swap[d], swap[x.ndim - 1]] = [swap[x.ndim - 1], swap[d]];
    const turned = permute(x, swap).copy(), length = x.shape[d];
    for (let i = 0; i < turned.size; i += length) turned.data.subarray(i, i + length).sort();
    return permute(turned, swap);
  }
  function transpose(x, order) {
    const given = listOf(order);
    if (!given.length || given[0] === null) return permute(x, [...x.shape.keys()].reverse().map(BigInt));
    if (given.length !== 2 || given !== order) return permute(x, given);  // two numbers are exchanged, as in torch
    const [a, b] = given.map(axis => axisOf(axis, x.ndim)), swap = [...x.shape.keys()].map(BigInt);
    [swap[a], swap[b]] = [swap[b], swap[a]];
    return permute(x, swap);
  }
  function squeeze(x, axis) {
    const chosen = axis === null ? [...x.shape.keys()].filter(d => x.shape[d] === 1) : axesOf(axis, x);
    if (chosen.some(d => x.shape[d] !== 1))
      refuse("ValueError", "cannot select an axis to squeeze out which has size not equal to one");
    return reshape(x, x.shape.filter((_, d) => !chosen.includes(d)));
  }
  const expand = (x, sizes) => broadcast(x, sizes.map((n, i) => n === -1 ? x.shape[i - sizes.length + x.ndim] : n));
  const where = (test, x, y) => elementwise((t, a, b) => t ? a : b, higher(x.kind, y.kind), test, x, y);
  const limit = (x, low, high) => {
    if (low !== null) x = either(Math.max)(x, low);
    return high === null ? x : either(Math.min)(x, high);
  };
  const outer = (x, y) => operate("*", reshape(x, [x.size, 1]), reshape(asArray(y), [1, asArray(y).size]));
  function mean(x, axis, keep) {
    return reduce(x, axis, keep, numbers => total(numbers) / numbers.length, "float");
  }
  const eye = (rows, columns, dtype) => {
    const shape = [whole(rows), columns === null ? whole(rows) : whole(columns)];
    const numbers = room(shape).map((_, i) => Number(Math.floor(i / shape[1]) === i % shape[1]));
    return array(numbers, shape, dtype === null ? "float" : kindOf(dtype));
  };
  const linspace = (start, stop, num) => {
    const n = whole(num), [a, b] = [start, stop].map(v => asArray(v).numbers()[0]);
    return array(room([n]).map((_, i) => i === n - 1 && n > 1 ? b : a + i * ((b - a) / (n - 1 || 1))), [n], "float");
  };

  // Of an array x, as a method too: x.sum(axis=0). Where the first argument is no array: see MAKERS.
  const METHODS = {}, MAKERS = {};
  const method = (names, signature, f) => {
    for (const name of names.split(" "))
      METHODS[name] = withSignature(name, `x|a|input ${signature}`, (x, ...rest) => f(asArray(x), ...rest));
  };
  const maker = (names, signature, f) => {
    for (const name of names.split(" ")) MAKERS[name] = withSignature(name, signature, f);
  };
  const BY_AXIS = "axis|dim=None keepdims|keepdim=False";

  for (const name of "exp log sqrt sin cos tan tanh log2 log10 expm1 log1p".split(" "))
    method(name, "", oneByOne(Math[name]));
  method("arctan atan", "", oneByOne(Math.atan));
  method("abs absolute", "", sameKind(Math.abs));
  method("square", "", sameKind(v => v * v));
  method("sign", "", sameKind(Math.sign));
  method("floor", "", sameKind(Math.floor));
  method("ceil", "", sameKind(Math.ceil));
  method("round", "", sameKind(halfEven));
  method("isnan", "", x => elementwise(Number.isNaN, "bool", x));
  method("isfinite", "", x => elementwise(Number.isFinite, "bool", x));
  method("logical_not", "", x => elementwise(v => !v, "bool", x));
  method("sum", BY_AXIS, (x, axis, keep) => reduce(x, axis, keep, total, counted(x.kind)));
  method("prod", BY_AXIS, (x, axis, keep) => reduce(x, axis, keep, product, counted(x.kind)));
  method("mean", BY_AXIS, mean);
  method("amax", BY_AXIS, (x, axis, keep) => extreme("max", x, axis, keep));
  method("amin", BY_AXIS, (x, axis, keep) => extreme("min", x, axis, keep));
  method("any", BY_AXIS, (x, axis, keep) => reduce(x, axis, keep, n => n.some(Boolean), "bool"));
  method("all", BY_AXIS, (x, axis, keep) => reduce(x, axis, keep, n => n.every(Boolean), "bool"));
  for (const which of ["max", "min"]) {
    method(`arg${which}`, BY_AXIS, (x, axis, keep) => arg(which, x, axis, keep));
    method(which, "other=- axis=None dim=None keepdims|keepdim=False", (x, other, axis, dim, keep) => {
      if (dim !== null) return pair(which, x, dim, keep);
      if (other instanceof NDArray) return either(Math[which])(x, other);
      if (other !== NONE && other !== null)
        lacks(`.${which} with a number alone, which NumPy and torch take differently: write axis= or dim=`);
      return extreme(which, x, axis, keep);
    });
  }
  method("cumsum", "axis|dim=None", cumulate);
  method("sort", "axis|dim=-1", sorted);
  method("reshape view", "*shape", (x, shape) => reshape(x, shapeOf(shape)));
  method("flatten ravel", "start_dim=0 end_dim=-1", flat);
  method("unflatten", "dim sizes", (x, dim, sizes) => {
    const d = axisOf(dim, x.ndim);
    const full = reshape(filled([x.shape[d]].map(BigInt), 0, null, "int"), [...sizes].map(whole)).shape;
    return reshape(x, [...x.shape.slice(0, d), ...full, ...x.shape.slice(d + 1)]);
  });
  method("permute", "*axes", (x, order) => permute(x, listOf(order)));
  method("transpose", "*axes", transpose);
  method("swapaxes", "axis1 axis2", (x, a, b) => transpose(x, [a, b]));
  method("squeeze", "axis|dim=None", squeeze);
  method("unsqueeze expand_dims", "axis|dim", (x, axis) => insert(x, axisOf(axis, x.ndim + 1)));
  method("expand", "*shape", (x, shape) => expand(x, shapeOf(shape)));
  method("broadcast_to", "shape", (x, shape) => broadcast(x, shapeOf([shape])));
  method("repeat_interleave", "repeats axis|dim=None", interleave);
  method("tile", "*reps", tile);
  method("roll", "shift|shifts axis|dims=None", roll);
  method("flip", "axis|dims=None", (x, axis) =>
    axesOf(axis, x).reduce((turned, d) => getItem(turned, along(d, new Slice(null, null, -1n))), x));
  method("split", "size|split_size_or_sections axis|dim=0", split);
  method("chunk", "chunks axis|dim=0", (x, chunks, axis) =>
    split(x, BigInt(Math.max(1, Math.ceil(x.shape[axisOf(axis, x.ndim)] / whole(chunks)))), axis));
  method("tril", "k|diagonal=0", triangle((off, k) => off <= k));
  method("triu", "k|diagonal=0", triangle((off, k) => off >= k));
  method("maximum", "y|other", either((a, b) => Number.isNaN(a) || Number.isNaN(b) ? NaN : Math.max(a, b)));
  method("minimum", "y|other", either((a, b) => Number.isNaN(a) || Number.isNaN(b) ? NaN : Math.min(a, b)));
  method("arctan2 atan2", "y|other", (x, y) => elementwise(Math.atan2, "float", x, asArray(y)));
  method("clip clamp", "min=None max=None", limit);
  method("masked_fill", "mask value", (x, mask, value) => where(asArray(mask), asArray(value), x));
  method("outer", "y|b", outer);
  method("matmul dot mm bmm", "y|b|other", (x, y) => matmul(x, asArray(y)));
  method("allclose", "y|other rtol=- atol=-", (x, y, rtol, atol) => {
    const [r, a] = [rtol === NONE ? 1e-5 : rtol, atol === NONE ? 1e-8 : atol];
    const close = (v, w) => v === w || Math.abs(v - w) <= a + r * Math.abs(w);
    return elementwise(close, "bool", x, asArray(y)).numbers().every(Boolean);
  });
  method("clone copy contiguous detach", "", x => x.copy());
  method("zeros_like", "dtype=None", (x, dtype) => filled(x.shape.map(BigInt), 0, dtype, x.kind));
  method("ones_like", "dtype=None", (x, dtype) => filled(x.shape.map(BigInt), 1, dtype, x.kind));
  method("full_like", "fill_value", (x, value) => typed(broadcast(asArray(value), x.shape).copy(), null));
  method("astype to type", "dtype", (x, dtype) => typed(x, dtype));
  for (const [names, kind] of [["float double", "float"], ["int long", "int"], ["bool", "bool"]])
    method(names, "", x => cast(x, kind));
  method("numel", "", x => BigInt(x.size));
  method("dim", "", x => BigInt(x.ndim));
  method("item", "", x => {
    if (x.size !== 1) refuse("ValueError", "can only convert an array of size 1 to a Python scalar");
    return x.value(x.numbers()[0]);
  });
  method("tolist", "", x => python.listed(x));

  for (const [name, value] of [["zeros", 0], ["ones", 1]]) MAKERS[name] = (args, named) => {
    const options = new Map(named), dtype = options.get("dtype") ?? null;
    const sizes = options.has("shape") ? [options.get("shape")] : options.has("size") ? [options.get("size")] : args;
    if ([...options.keys()].some(key => !["dtype", "shape", "size"].includes(key))) lacks(`this keyword of ${name}`);
    return filled(sizes, value, dtype, "float");
  };
  maker("full", "shape|size fill_value dtype=None", (shape, value, dtype) =>
    typed(broadcast(asArray(value), shapeOf([shape])).copy(), dtype));
  maker("arange", "start stop|end=- step=1 dtype=None", (start, stop, step, dtype) =>
    typed(stop === NONE ? range(0n, start, step) : range(start, stop, step), dtype));
  maker("linspace", "start stop|end num|steps", linspace);
  maker("eye", "n|N m|M=None dtype=None", eye);
  maker("array tensor asarray", "data dtype=None", (data, dtype) => typed(asArray(data).copy(), dtype));
  maker("where", "condition x y", (...parts) => where(...parts.map(asArray)));
  maker("concatenate cat", "arrays|tensors axis|dim=0", (parts, axis) => axis === null
    ? concatenate([...python.iterate(parts)].map(x => reshape(asArray(x), [asArray(x).size])), 0n)
    : concatenate([...python.iterate(parts)].map(asArray), axis));
  maker("stack", "arrays|tensors axis|dim=0", (parts, axis) => stack([...python.iterate(parts)].map(asArray), axis));

  // The modules: Maps of names to values.
  const dtypes = (kindName, names) => names.split(" ").map(name => [name, { kindName, name: "dtype" }]);
  const OF_ARRAYS_ALONE = new Set("item tolist numel dim float int long double bool to type astype".split(" "));
  const shared = [...Object.entries(METHODS).filter(([name]) => !OF_ARRAYS_ALONE.has(name)),
    ...Object.entries(MAKERS), ["pi", Math.PI], ["inf", Infinity], ["nan", NaN], ["e", Math.E], ["newaxis", null],
    ...dtypes("bool", "bool bool_"), ...dtypes("int", "int32 int64 long"),
    ...dtypes("float", "float float32 float64 double")];
  const np = new Map(shared), torch = new Map(shared);
  np.set("repeat", METHODS.repeat_interleave);
  np.set("max", METHODS.amax).set("min", METHODS.amin).delete("split");
  for (const which of ["max", "min"])
    torch.set(which, withSignature(which, `input other|dim=- keepdim=False`, (x, other, keep) => {
    if (other instanceof NDArray) return METHODS[`${which}imum`]([x, other], []);
    return other === NONE ? extreme(which, asArray(x), null, false) : pair(which, asArray(x), other, keep);
  }));

  const number = value => {
    if (typeof value === "number") return value;
    if (value instanceof NDArray && value.size === 1) return value.numbers()[0];
    if (["bigint", "boolean"].includes(typeof value)) return Number(value);
    refuse("TypeError", `must be real number, not ${python.typeName(value)}`);
  };
  const real = (name, signature, f, whole_ = false) => [name, withSignature(name, signature, (...args) => {
    const numbers = args.map(number), result = f(...numbers);
    if (Number.isNaN(result) && !numbers.some(Number.isNaN)) refuse("ValueError", "math domain error");
    if (Math.abs(result) === Infinity && numbers.every(Number.isFinite))
      refuse(...name.startsWith("log") ? ["ValueError", "math domain error"] : ["OverflowError", "math range error"]);
    if (whole_ && !Number.isFinite(result))
      refuse(Number.isNaN(result) ? "ValueError" : "OverflowError", `cannot convert float ${result} to integer`);
    return whole_ ? BigInt(result) : result;
  })];
  const math = new Map([
    ..."sqrt exp sin cos tan atan acos asin tanh log2 log10".split(" ").map(name => real(name, "x", Math[name])),
    real("atan2", "y x", Math.atan2), real("hypot", "x y", Math.hypot), real("pow", "x y", python.power),
    ["log", withSignature("log", "x base=None", (x, base) => {
      const log = new Map([real("log", "x", Math.log)]).get("log");
      return base === null ? log([x], []) : log([x], []) / log([base], []);
    })],
    real("floor", "x", Math.floor, true), real("ceil", "x", Math.ceil, true),
    ["pi", Math.PI], ["e", Math.E], ["inf", Infinity], ["nan", NaN],
    ["isnan", withSignature("isnan", "x", x => Number.isNaN(number(x)))],
    ["isfinite", withSignature("isfinite", "x", x => Number.isFinite(number(x)))],
  ]);

  const MODULES = { np, numpy: np, torch, math };
  Object.assign(python, { METHODS, MODULES, withSignature, whole, number, halfEven, NONE });
})();
