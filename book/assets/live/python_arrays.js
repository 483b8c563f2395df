"use strict";
// Arrays for the small part of Python (python_run.js): what NumPy does with them, to the letter.
//
// An array looks through its shape and strides into data that a slice or a transpose shares with it. Its kind
// is "bool", "int" or "float"; every number is kept as a double, so whole numbers end at 2**53.
(() => {
  const { python } = mllama, { refuse, lacks, ELLIPSIS } = python;
  const LARGEST = 1e6;  // numbers in one array, items in one list
  const KINDS = ["bool", "int", "float"];
  const product = numbers => numbers.reduce((a, b) => a * b, 1);
  const told = shape => `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
  const higher = (...kinds) => KINDS[Math.max(...kinds.map(kind => KINDS.indexOf(kind)))];

  class Tuple extends Array {}
  class Pair extends Tuple {}  // of torch's max along one dimension
  class Slice {
    constructor(...parts) { this.parts = parts; }  // start, stop, step
  }
  const ALL = new Slice(null, null, null);

  // The key of x[:, :, item] for axis 2.
  const along = (axis, item) => Tuple.from([...Array(axis).fill(ALL), item]);

  // What running counts: work, so that nothing goes on for ever, and what a check may ask about.
  const made = { work: 0, largest: 0, nan: false };
  function work(amount) {
    made.work += amount;
    if (made.work > 4e6) refuse("TimeoutError", "it takes too many steps: does every loop end?");
  }

  class NDArray {
    constructor(data, shape, kind, strides = null, offset = 0) {
      Object.assign(this, { data, shape, kind, offset });
      this.strides = strides ?? shape.map((_, d) => product(shape.slice(d + 1)));
    }

    get size() { return product(this.shape); }
    get ndim() { return this.shape.length; }
    view(shape, strides, offset = this.offset) { return new NDArray(this.data, shape, this.kind, strides, offset); }

    // Where its numbers stand in the data, row after row.
    places() {
      let found = Int32Array.of(this.offset);
      this.shape.forEach((length, d) => {
        const next = new Int32Array(found.length * length);
        let k = 0;
        for (const from of found) for (let i = 0; i < length; i++) next[k++] = from + i * this.strides[d];
        found = next;
      });
      work(found.length / 20);
      return found;
    }

    numbers() { return taken(this.data, this.places()); }
    copy(kind = this.kind) { return array(this.numbers(), this.shape, kind); }
    value(number = this.data[this.offset]) {  // as Python has it
      return this.kind === "bool" ? number !== 0 : this.kind === "int" ? BigInt(number) : number;
    }
  }

  function taken(data, places) {
    const numbers = new Float64Array(places.length);
    for (let i = 0; i < places.length; i++) numbers[i] = data[places[i]];
    return numbers;
  }

  // A new array of these numbers. Every array that is computed comes by here.
  function array(numbers, shape, kind) {
    for (let i = 0; i < numbers.length; i++) {
      if (numbers[i] !== numbers[i]) made.nan = true;
      if (kind !== "int") continue;
      if (!(Math.abs(numbers[i]) < 2 ** 53)) lacks("whole numbers from 2**53 on in arrays");
      numbers[i] += 0;  // there is no -0 among whole numbers
    }
    made.largest = Math.max(made.largest, numbers.length);
    work(1 + numbers.length / 20);
    return new NDArray(numbers, shape, kind);
  }

  function room(shape) {
    if (shape.some(length => length < 0)) refuse("ValueError", "negative dimensions are not allowed");
    work(sizeOf(shape) / 20);
    return new Float64Array(sizeOf(shape));
  }

  function sizeOf(shape) {
    const size = product(shape);
    if (size > LARGEST)
      refuse("MemoryError", `an array of ${told(shape)} is too large: the page has room for a million numbers`);
    return size;
  }

  // A Python value as an array: a number, a list of lists, or an array as it is.
  function asArray(value) {
    if (value instanceof NDArray) return value;
    if (typeof value === "boolean") return new NDArray(Float64Array.of(value), [], "bool");
    if (typeof value === "bigint") return array(Float64Array.of(Number(value)), [], "int");
    if (typeof value === "number") return new NDArray(Float64Array.of(value), [], "float");
    if (python.typeName(value) === "range") value = [...python.iterate(value)];
    if (!Array.isArray(value)) refuse("TypeError", `an array of numbers is expected, not '${python.typeName(value)}'`);
    if (!value.length) return new NDArray(new Float64Array(0), [0], "float");
    return stack(value.map(asArray), 0, "the parts of an array have different shapes");
  }

  function broadcastShapes(...shapes) { return commonShape(shapes, "ValueError", "operands"); }

  function commonShape(shapes, kind, what) {
    const ndim = Math.max(...shapes.map(shape => shape.length)), result = Array(ndim).fill(1);
    for (const shape of shapes) shape.forEach((length, d) => {
      const at = d + ndim - shape.length;
      if (length !== 1 && result[at] !== 1 && length !== result[at]) refuse(kind,
        `${what} could not be broadcast together with shapes ${shapes.map(told).join(" ")}`);
      if (length !== 1) result[at] = length;
    });
    return result;
  }

  function broadcast(x, shape, otherwise = null) {
    const more = shape.length - x.ndim;
    if (more < 0 || x.shape.some((length, d) => length !== 1 && length !== shape[d + more]))
      refuse("ValueError", otherwise ?? `an array of ${told(x.shape)} could not be broadcast to ${told(shape)}`);
    sizeOf(shape);
    return x.view(shape, shape.map((_, d) => d < more || x.shape[d - more] === 1 ? 0 : x.strides[d - more]));
  }

  // f of every number, or of every two, three, ...
  function elementwise(f, kind, ...values) {
    const shape = broadcastShapes(...values.map(x => x.shape)), result = room(shape);
    const from = values.map(x => [x.data, broadcast(x, shape).places()]);
    if (from.length === 1) {
      const [[a, p]] = from;
      for (let i = 0; i < result.length; i++) result[i] = f(a[p[i]]);
    } else if (from.length === 2) {
      const [[a, p], [b, q]] = from;
      for (let i = 0; i < result.length; i++) result[i] = f(a[p[i]], b[q[i]]);
    } else for (let i = 0; i < result.length; i++) result[i] = f(...from.map(([data, places]) => data[places[i]]));
    return array(result, shape, kind);
  }

  // ---- Operators --------------------------------------------------------------------------

  const modulo = (a, b) => {
    const rest = a % b;
    return rest !== 0 && rest < 0 !== b < 0 ? rest + b : rest === 0 ? Math.sign(b) * 0 : rest;
  };
  const floorDivide = (a, b) => {
    if (b === 0) return a / b;
    const rest = a % b, ratio = (a - rest) / b - (rest !== 0 && rest < 0 !== b < 0);
    return Math.floor(ratio + (ratio - Math.floor(ratio) > 0.5)) || 0 * (a / b);
  };
  const power = (a, b) => a === 1 || (a === -1 && Math.abs(b) === Infinity) ? 1 : a ** b;
  const bits = f => (a, b) => Number(f(BigInt(a), BigInt(b)));
  const ARITHMETIC = {
    "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b, "/": (a, b) => a / b,
    "//": floorDivide, "%": modulo, "**": power,
    "&": bits((a, b) => a & b), "|": bits((a, b) => a | b), "^": bits((a, b) => a ^ b),
  };
  const COMPARE = {
    "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b,
    "==": (a, b) => a === b, "!=": (a, b) => a !== b,
  };

  function operate(operator, left, right) {
    const [a, b] = [asArray(left), asArray(right)];
    if (operator === "@") return matmul(a, b);
    if (operator in COMPARE) return elementwise(COMPARE[operator], "bool", a, b);
    const f = ARITHMETIC[operator], both = higher(a.kind, b.kind);
    if (!f) lacks(`${operator} for arrays`);
    if (both === "bool") {
      if (operator === "-") refuse("TypeError", "numpy boolean subtract, the `-` operator, is not supported: use ^");
      if (operator === "+") return elementwise((x, y) => x || y, "bool", a, b);
      if (operator === "*" || "&|^".includes(operator)) return elementwise(f, "bool", a, b);
    }
    if ("&|^".includes(operator) && both === "float")
      refuse("TypeError", `'${operator}' is not supported for floats`);
    if (both === "float" || operator === "/") return elementwise(f, "float", a, b);
    if (operator === "**" && b.numbers().some(x => x < 0))
      refuse("ValueError", "Integers to negative integer powers are not allowed.");
    if ("//" === operator || "%" === operator) return elementwise((x, y) => y === 0 ? 0 : f(x, y), "int", a, b);
    return elementwise(f, "int", a, b);
  }

  function negate(operator, x) {
    if (operator === "~") {
      if (x.kind === "float") refuse("TypeError", "'~' is not supported for floats");
      return elementwise(x.kind === "bool" ? v => !v : v => -v - 1, x.kind, x);
    }
    if (x.kind === "bool")
      refuse("TypeError", `'${operator}' before an array of True and False is not supported: ~ turns them round`);
    return elementwise(operator === "-" ? v => -v : v => v, x.kind, x);
  }

  function matmul(a, b) {
    if (!a.ndim || !b.ndim) refuse("ValueError", "matmul: an operand has no dimensions; use *");
    const left = a.ndim === 1 ? a.view([1, ...a.shape], [0, ...a.strides]) : a;
    const right = b.ndim === 1 ? b.view([...b.shape, 1], [...b.strides, 0]) : b;
    const [rows, inner] = left.shape.slice(-2), [other, columns] = right.shape.slice(-2);
    if (inner !== other)
      refuse("ValueError", `matmul: the sizes ${inner} and ${other} differ, of ${told(a.shape)} and ${told(b.shape)}`);
    const many = broadcastShapes(left.shape.slice(0, -2), right.shape.slice(0, -2));
    const p = broadcast(left, [...many, rows, inner]).places();
    const q = broadcast(right, [...many, inner, columns]).places();
    const result = room([...many, rows, columns]);
    work(result.length * inner / 20);
    for (let m = 0, k = 0; k < result.length; m++)
      for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++, k++) {
      let sum = 0;
      for (let n = 0; n < inner; n++)
        sum += a.data[p[(m * rows + i) * inner + n]] * b.data[q[(m * inner + n) * columns + j]];
      result[k] = sum;
    }
    const shape = [...many, ...(a.ndim > 1 ? [rows] : []), ...(b.ndim > 1 ? [columns] : [])];
    const kind = higher(a.kind, b.kind);
    return array(kind === "bool" ? result.map(Boolean) : result, shape, kind);
  }

  // ---- Shapes -----------------------------------------------------------------------------

  function axisOf(axis, ndim) {
    const d = Number(axis);
    if (!Number.isInteger(d) || typeof axis === "number") refuse("TypeError", "an axis is a whole number");
    if (d < -ndim || d >= ndim) refuse("IndexError", `axis ${d} is out of bounds for array of dimension ${ndim}`);
    return d < 0 ? d + ndim : d;
  }

  // Of an axis, a tuple of them, or None for all.
  function axesOf(axis, x) {
    if (axis === null) return [...x.shape.keys()];
    const axes = (Array.isArray(axis) ? [...axis] : [axis]).map(one => axisOf(one, x.ndim));
    if (new Set(axes).size < axes.length) refuse("ValueError", "duplicate value in 'axis'");
    return axes;
  }

  function reshape(x, shape) {
    const known = product(shape.filter(length => length !== -1)), open = shape.indexOf(-1);
    const full = shape.map(length => length === -1 ? x.size / known : length);
    if (shape.filter(length => length === -1).length > 1)
      refuse("ValueError", "can only specify one unknown dimension");
    const fits = full.every(length => Number.isInteger(length) && length >= 0) && product(full) === x.size;
    if (!fits || (open >= 0 && !known))
      refuse("ValueError", `cannot reshape array of size ${x.size} into shape ${told(shape)}`);
    const inOrder = x.shape.every((length, d) => length === 1 || x.strides[d] === product(x.shape.slice(d + 1)));
    return inOrder ? x.view(full, null) : array(x.numbers(), full, x.kind);
  }

  function permute(x, order) {
    const axes = order.map(axis => axisOf(axis, x.ndim));
    if (axes.length !== x.ndim || new Set(axes).size !== x.ndim) refuse("ValueError", "axes don't match array");
    return x.view(axes.map(d => x.shape[d]), axes.map(d => x.strides[d]));
  }

  function concatenate(parts, axis) {
    if (!parts.length) refuse("ValueError", "need at least one array to concatenate");
    const [first] = parts, d = axisOf(axis, first.ndim);
    if (parts.some(part => part.ndim !== first.ndim || part.shape.some((n, e) => e !== d && n !== first.shape[e])))
      refuse("ValueError", `${parts.map(part => told(part.shape)).join(", ")} cannot be joined along axis ${d}`);
    const shape = first.shape.with(d, parts.reduce((sum, part) => sum + part.shape[d], 0));
    const result = new NDArray(room(shape), shape, higher(...parts.map(part => part.kind)));
    let start = 0;
    for (const part of parts) {
      const places = result.view(part.shape, result.strides, start * result.strides[d]).places();
      part.numbers().forEach((number, i) => { result.data[places[i]] = number; });
      start += part.shape[d];
    }
    return array(result.data, shape, result.kind);
  }

  function stack(parts, axis, otherwise = "all input arrays must have the same shape") {
    if (!parts.length) refuse("ValueError", "need at least one array to stack");
    const { shape } = parts[0], d = axisOf(BigInt(axis), shape.length + 1);
    if (parts.some(part => told(part.shape) !== told(shape))) refuse("ValueError", otherwise);
    return concatenate(parts.map(part => insert(part, d)), BigInt(d));
  }

  const insert = (x, d) => x.view(x.shape.toSpliced(d, 0, 1), x.strides.toSpliced(d, 0, 0));

  // f of the numbers along some axes; null: all of them.
  function reduce(x, axis, keep, f, kind) {
    const axes = axesOf(axis, x);
    const rest = x.shape.map((_, d) => d).filter(d => !axes.includes(d));
    const numbers = permute(x, [...rest, ...axes].map(BigInt)).numbers(), length = product(axes.map(d => x.shape[d]));
    const result = room(rest.map(d => x.shape[d]));
    for (let i = 0; i < result.length; i++) result[i] = f(numbers.subarray(i * length, (i + 1) * length));
    const shape = keep ? x.shape.map((n, d) => axes.includes(d) ? 1 : n) : rest.map(d => x.shape[d]);
    return array(result, shape, kind);
  }

  // ---- Indices ----------------------------------------------------------------------------

  // start, step and count of a slice, as Python's slice.indices.
  function sliceOf({ parts: [start, stop, step] }, length) {
    const whole = value => {
      if (value instanceof NDArray && !value.ndim && value.kind === "int") return Number(value.value());
      if (typeof value !== "bigint" && typeof value !== "boolean")
        refuse("TypeError", "slice indices must be integers or None or have an __index__ method");
      return Number(value);
    };
    const by = step === null ? 1 : whole(step);
    if (by === 0) refuse("ValueError", "slice step cannot be zero");
    const [low, high] = by > 0 ? [0, length] : [-1, length - 1];
    const bound = (value, standard) => {
      if (value === null) return standard;
      const at = whole(value);
      return Math.min(high, Math.max(low, at < 0 ? at + length : at));
    };
    const first = bound(start, by > 0 ? low : high), end = bound(stop, by > 0 ? high : low);
    return { first, by, count: Math.max(0, Math.ceil((end - first) / by)) };
  }

  function placed(at, length, axis) {
    if (at < -length || at >= length)
      refuse("IndexError", `index ${at} is out of bounds for axis ${axis} with size ${length}`);
    return at < 0 ? at + length : at;
  }

  // What x[key] is: a view, or for lists, masks and arrays as indices the places of copies.
  function locate(x, key) {
    let items = key instanceof Tuple ? [...key] : [key];
    items = items.flatMap(item => {
      if (Array.isArray(item) && !item.length) return [new NDArray(new Float64Array(0), [0], "int")];
      if (typeof item === "boolean") lacks("True and False as an index");
      if (Array.isArray(item)) item = asArray(item);
      if (item instanceof NDArray && item.kind === "float")
        refuse("IndexError", "arrays used as indices must be of integer (or boolean) type");
      if (!(item instanceof NDArray) || item.kind !== "bool") return [item];
      if (!item.ndim) lacks("True and False as an index");
      const on = [...item.numbers().entries()].filter(([, on]) => on).map(([i]) => i);
      return item.shape.map((length, d) => Object.assign(new NDArray(Float64Array.from(on,
        i => Math.floor(i / product(item.shape.slice(d + 1))) % length), [on.length], "int"), { mask: length }));
    });
    const given = items.filter(item => item !== null && item !== ELLIPSIS).length;
    if (given > x.ndim)
      refuse("IndexError", `too many indices for array: array is ${x.ndim}-dimensional, but ${given} were indexed`);
    const dots = items.filter(item => item === ELLIPSIS).length;
    if (dots > 1) refuse("IndexError", "an index can only have a single ellipsis ('...')");
    const whole = Array(x.ndim - given).fill(ALL);
    if (dots) items.splice(items.indexOf(ELLIPSIS), 1, ...(whole.length ? whole : [ELLIPSIS]));
    else items.push(...whole);
    const byArray = items.some(item => item instanceof NDArray && (item.ndim || item.mask !== undefined));
    const shape = [], strides = [], lists = [], where = [];
    let { offset } = x, axis = 0, before = 0;
    items.forEach((item, i) => {
      if (item === ELLIPSIS) return;
      if (item === null) {
        shape.push(1);
        strides.push(0);
        return;
      }
      const length = x.shape[axis], stride = x.strides[axis];
      if (item instanceof Slice) {
        const { first, by, count } = sliceOf(item, length);
        shape.push(count);
        strides.push(stride * by);
        if (count) offset += first * stride;
      } else {
        if (!(item instanceof NDArray) && typeof item !== "bigint") refuse("IndexError",
          "only integers, slices, ..., None and integer or boolean arrays are valid indices");
        const one = asArray(item);
        if (one.mask !== undefined && one.mask !== length) refuse("IndexError",
          `boolean index did not match indexed array along axis ${axis}: it has ${length}, the index ${one.mask}`);
        const at = elementwise(v => placed(v, length, axis) * stride, "int", one);
        if (byArray) {
          if (!lists.length) before = shape.length;
          lists.push(at);
          where.push(i);
        } else offset += at.data[0];
      }
      axis += 1;
    });
    const view = x.view(shape, strides, offset);
    if (!byArray) return { view, copied: !shape.length && items.every(item => item !== ELLIPSIS) };
    if (where.at(-1) - where[0] >= where.length) before = 0;  // apart: what they choose comes first
    const chosen = commonShape(lists.map(list => list.shape), "IndexError", "shape mismatch: indexing arrays");
    const off = lists.map(list => broadcast(list, chosen).numbers());
    const lead = x.view(shape.slice(0, before), strides.slice(0, before), offset).places();
    const tail = x.view(shape.slice(before), strides.slice(before), 0).places();
    const result = [...shape.slice(0, before), ...chosen, ...shape.slice(before)];
    const places = new Int32Array(room(result).length);
    let k = 0;
    for (const l of lead) for (let c = 0; c < product(chosen); c++) {
      const at = off.reduce((sum, list) => sum + list[c], l);
      for (const t of tail) places[k++] = at + t;
    }
    return { places, shape: result };
  }

  function getItem(x, key) {
    const { view, copied, places, shape } = locate(x, key);
    if (view) return copied ? view.copy() : view;
    return array(taken(x.data, places), shape, x.kind);
  }

  function setItem(x, key, value) {
    const found = locate(x, key), shape = found.shape ?? found.view.shape, given = asArray(value);
    if (!shape.length && given.ndim && x.kind !== "bool")
      refuse("ValueError", "setting an array element with a sequence.");
    put(x, found.places ?? found.view.places(), shape, given);
  }

  function put(x, places, shape, value) {
    while (value.ndim > shape.length && value.shape[0] === 1)
      value = value.view(value.shape.slice(1), value.strides.slice(1));
    const otherwise = `could not broadcast input array from shape ${told(value.shape)} into shape ${told(shape)}`;
    const numbers = broadcast(value, shape, otherwise).numbers(), cast = caster(x.kind);
    work(numbers.length / 20);
    for (let i = 0; i < numbers.length; i++) x.data[places[i]] = cast(numbers[i]);
  }

  // A number as an array of this kind keeps it.
  const caster = kind => kind === "float" ? v => v : kind === "bool" ? v => v !== 0 : v => {
    if (!Number.isFinite(v)) refuse("ValueError", `cannot convert float ${v} to integer`);
    return Math.trunc(v) + 0;
  };
  const cast = (x, kind) => elementwise(caster(kind), kind, x);

  Object.assign(python, {
    NDArray, Tuple, Pair, Slice, along, LARGEST, made, work, array, asArray, room, product, told, higher, broadcast,
    elementwise, operate, negate, matmul, axisOf, axesOf, reshape, permute, concatenate, stack, insert,
    reduce, sliceOf, getItem, setItem, put, cast, floorDivide, modulo, power,
  });
})();
