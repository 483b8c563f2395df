"use strict";
// A small part of Python, read: text to tokens to a tree. python_run.js runs the tree.
//
// A node is { type, line, ... }. Lines that Python takes and this does not, such as `class`, are refused in one
// sentence that says so.
(() => {
  // What Python would raise, by Python's name; or, without a name, what this part of Python lacks.
  class PyError extends Error {
    constructor(kind, message, line = null) {
      super(message);
      Object.assign(this, { kind, line });
    }

    get sentence() {
      const said = this.kind ? `${this.kind}: ${this.message}` : `the page knows only a small part of Python, `
        + `without ${this.message}; the notebook takes everything`;
      return this.line === null ? said : `line ${this.line}: ${said}`;
    }
  }
  const refuse = (kind, message, line = null) => { throw new PyError(kind, message, line); };
  const lacks = (what, line = null) => refuse(null, what, line);

  const LACKING = "assert async await class except finally from global nonlocal raise try with yield".split(" ");
  const KEYWORDS = new Set([...LACKING, ...("False None True and as break continue def del elif else for if import in "
    + "is lambda not or pass return while").split(" ")]);
  const OPERATORS = ("**= //= <<= >>= ... ** // << >> <= >= == != -> := += -= *= /= %= @= &= |= ^= "
    + "+ - * / % @ < > = ( ) [ ] { } , : . ; & | ^ ~").split(" ");
  const NUMBER = /0[xXbBoO][\da-fA-F_]+|(?:\d(?:_?\d)*\.?(?:\d(?:_?\d)*)?|\.\d(?:_?\d)*)(?:[eE][+-]?\d+)?/y;
  const NAME = /[\p{L}_][\p{L}\p{N}_]*/uy;
  const STRING = /"""((?:[^\\]|\\[^])*?)"""|'''((?:[^\\]|\\[^])*?)'''|"((?:[^"\\\n]|\\[^])*)"|'((?:[^'\\\n]|\\[^])*)'/y;
  const ESCAPES = { n: "\n", t: "\t", "\\": "\\", "'": "'", '"': '"', "\n": "" };

  function tokens(text) {
    const found = [], indents = [0];
    let at = 0, line = 1, depth = 0, lineStart = true;
    const put = (kind, value) => found.push({ kind, value, line });
    const match = pattern => {
      pattern.lastIndex = at;
      const hit = pattern.exec(text);
      if (hit) at = pattern.lastIndex;
      return hit;
    };
    text = text.replace(/\r\n?/g, "\n");
    while (at < text.length) {
      if (lineStart && !depth) {
        const [space] = match(/[ \t]*/y), width = space.replace(/\t/g, "        ").length;
        lineStart = false;
        if (at >= text.length || "#\n".includes(text[at])) { /* an empty line has no indentation */
        } else if (width > indents.at(-1)) {
          indents.push(width);
          put("indent");
        } else {
          while (width < indents.at(-1)) {
            indents.pop();
            put("dedent");
          }
          if (width !== indents.at(-1))
            refuse("IndentationError", "unindent does not match any outer indentation level", line);
        }
        continue;
      }
      if (match(/[ \t]+|#[^\n]*/y)) continue;
      if (match(/\\\n/y)) {
        line += 1;
        continue;
      }
      if (text[at] === "\n") {
        if (!depth && found.length && found.at(-1).kind !== "newline") put("newline");
        lineStart = true;
        line += 1;
        at += 1;
        continue;
      }
      let hit;
      if (/[\d.]/.test(text[at]) && (hit = match(NUMBER))) {
        const digits = hit[0].replace(/_/g, "");
        if (/[jJ]/.test(text[at])) lacks("complex numbers", line);
        if (/[\p{L}_]/u.test(text[at] ?? "") || /^0\d*[1-9]\d*$/.test(digits))
          refuse("SyntaxError", "invalid decimal literal", line);
        const whole = /^0[xXbBoO]/.test(digits) || !/[.eE]/.test(digits);
        put("number", whole ? BigInt(digits.replace(/^0+(?=\d)/, "")) : Number(digits));
      } else if ((hit = match(NAME))) {
        if (/["']/.test(text[at]) && /^[rbfu]{1,2}$/i.test(hit[0])) lacks(`strings with ${hit[0]} before them`, line);
        put(KEYWORDS.has(hit[0]) ? "keyword" : "name", hit[0]);
      } else if ((hit = match(STRING))) {
        const body = hit.slice(1).find(part => part !== undefined);
        if (/(^|[^\\])(\\\\)*\\[abfrvxuUN0-7]/.test(body)) lacks("this escape in a string", line);
        put("string", body.replace(/\\([^])/g, (whole, c) => ESCAPES[c] ?? whole));
        line += hit[0].split("\n").length - 1;
      } else {
        const operator = OPERATORS.find(one => text.startsWith(one, at));
        if (!operator) refuse("SyntaxError", /["']/.test(text[at]) ? "unterminated string literal"
          : `invalid character '${String.fromCodePoint(text.codePointAt(at))}'`, line);
        at += operator.length;
        if ("([{".includes(operator)) depth += 1;
        if (")]}".includes(operator)) depth = Math.max(0, depth - 1);
        put("operator", operator);
      }
    }
    if (found.length && found.at(-1).kind !== "newline") put("newline");
    while (indents.pop()) put("dedent");
    put("end", "the end");
    return found;
  }

  const STRENGTH = {
    "|": 1, "^": 2, "&": 3, "<<": 4, ">>": 4, "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6, "@": 6,
  };
  const COMPARISONS = new Set(["<", ">", "==", ">=", "<=", "!=", "in", "not", "is"]);

  class Parser {
    constructor(text) {
      this.tokens = tokens(text);
      this.at = 0;
      this.bound = new Set();  // names that the function at hand assigns to: its own
    }

    get token() { return this.tokens[this.at]; }
    node(type, more, line = this.token.line) { return { type, line, ...more }; }
    is(...values) { return ["operator", "keyword"].includes(this.token.kind) && values.includes(this.token.value); }
    take(...values) { return this.is(...values) ? this.tokens[this.at++] : null; }

    wrong(expected) {
      const { kind, value, line } = this.token;
      if (kind === "keyword" && LACKING.includes(value)) lacks(value, line);
      if (kind === "indent") refuse("IndentationError", "unexpected indent", line);
      const found = value ?? (kind === "newline" ? "the end of the line" : kind);
      refuse("SyntaxError", `expected ${expected}, found ${found}`, line);
    }

    need(value) { return this.take(value) ?? this.wrong(`'${value}'`); }
    name() { return this.token.kind === "name" ? this.tokens[this.at++].value : this.wrong("a name"); }
    kind(kind) { return this.token.kind === kind ? this.tokens[this.at++] : null; }

    // ---- Statements ---------------------------------------------------------------------

    program() {
      const body = [];
      while (!this.kind("end")) body.push(...this.statement());
      return body;
    }

    block() {
      this.need(":");
      if (!this.kind("newline")) return this.simpleLine();
      if (!this.kind("indent"))
        refuse("IndentationError", "expected an indented block", this.token.line);
      const body = [];
      while (!this.kind("dedent")) body.push(...this.statement());
      return body;
    }

    statement() {
      const { line } = this.token;
      if (this.take("if")) return [this.branch(line)];
      if (this.take("while")) return [this.node("while", { test: this.named(), body: this.block() }, line)];
      if (this.take("for")) {
        const target = this.targets();
        this.need("in");
        return [this.node("for", { target, over: this.list(), body: this.block() }, line)];
      }
      if (this.take("def")) {
        const name = this.name(), outer = this.bound;
        outer.add(name);
        this.need("(");
        const params = this.params(")");
        this.need(")");
        if (this.take("->")) this.expression();
        this.bound = new Set(params.map(one => one.name));
        const body = this.block(), own = this.bound;
        this.bound = outer;
        return [this.node("def", { name, params, body, own }, line)];
      }
      return this.simpleLine();
    }

    branch(line) {
      const test = this.named(), body = this.block(), next = this.token.line;
      const other = this.take("elif") ? [this.branch(next)] : this.take("else") ? this.block() : [];
      return this.node("if", { test, body, other }, line);
    }

    params(end) {
      const params = [];
      while (!this.is(end)) {
        if (this.is("*", "**", "/")) lacks(`${this.token.value} in a signature`, this.token.line);
        const { line } = this.token, name = this.name();
        if (params.some(one => one.name === name))
          refuse("SyntaxError", `duplicate argument '${name}' in function definition`, line);
        if (end === ")" && this.take(":")) this.expression();  // a type says something to people
        const standard = this.take("=") ? this.expression() : null;
        if (!standard && params.some(one => one.standard))
          refuse("SyntaxError", "parameter without a default follows parameter with a default", line);
        params.push({ name, standard });
        if (!this.take(",")) break;
      }
      return params;
    }

    simpleLine() {
      const body = [this.simple()];
      while (this.take(";")) if (this.token.kind !== "newline") body.push(this.simple());
      if (!this.kind("newline")) this.wrong("the end of the line");
      return body;
    }

    simple() {
      const { line } = this.token;
      for (const word of ["pass", "break", "continue"]) if (this.take(word)) return this.node(word, {}, line);
      if (this.take("return"))
        return this.node("return", { value: this.token.kind === "newline" ? null : this.list() }, line);
      if (this.take("del")) return this.node("del", { target: this.list() }, line);
      if (this.take("import")) {
        const module = this.name(), name = this.take("as") ? this.name() : module;
        this.bound.add(name);
        return this.node("import", { module, name }, line);
      }
      const first = this.list();
      if (this.token.kind === "operator" && /^[^=<>!:]{1,2}=$|^(<<|>>)=$/.test(this.token.value)) {
        const operator = this.tokens[this.at++].value.slice(0, -1);
        if (!["name", "subscript"].includes(first.type)) this.target(first, true);
        this.target(first);
        return this.node("augmented", { target: first, operator, value: this.list() }, line);
      }
      if (this.is(":")) lacks("types of variables", line);
      const sides = [first];
      while (this.take("=")) sides.push(this.list());
      const value = sides.pop();
      if (!sides.length) return this.node("expression", { value }, line);
      return this.node("assign", { targets: sides.map(one => this.target(one)), value }, line);
    }

    // An expression as something to assign to.
    target(node, alone = false) {
      if (node.type === "attribute") lacks("assigning to attributes", node.line);
      if (node.type === "name") this.bound.add(node.name);
      else if (["list", "tuple"].includes(node.type) && !alone) node.items.forEach(one => this.target(one));
      else if (node.type === "star" && !alone) this.target(node.value);
      else if (node.type !== "subscript")
        refuse("SyntaxError", "cannot assign to this expression", node.line);
      return node;
    }

    // The targets of a loop, up to its `in`.
    targets() {
      const { line } = this.token, items = [];
      let comma = false;
      do {
        if (this.is("in")) break;
        items.push(this.take("*") ? this.node("star", { value: this.primary() }) : this.primary());
      } while (this.take(",") && (comma = true));
      if (!items.length) this.wrong("a name");
      return this.target(comma ? this.node("tuple", { items }, line) : items[0]);
    }

    // ---- Expressions --------------------------------------------------------------------

    ends() { return this.token.kind === "newline" || this.is(")", "]", "}", "=", ";") || this.token.kind === "end"; }

    // One expression, or a tuple without its parentheses.
    list(one = () => this.starred()) {
      const { line } = this.token, items = [one()];
      if (!this.is(",")) return items[0].type === "star" ? this.wrong("','") : items[0];
      while (this.take(",") && !this.ends()) items.push(one());
      return this.node("tuple", { items }, line);
    }

    starred() {
      const { line } = this.token;
      return this.take("*") ? this.node("star", { value: this.binary(1) }, line) : this.named();
    }

    named() {
      const value = this.expression();
      if (!this.is(":=")) return value;
      if (value.type !== "name") this.wrong("a name before :=");
      const { line } = this.need(":=");
      this.bound.add(value.name);
      return this.node("walrus", { name: value.name, value: this.expression() }, line);
    }

    expression() {
      const { line } = this.token;
      if (this.take("lambda")) {
        const params = this.params(":"), outer = this.bound;
        this.need(":");
        this.bound = new Set(params.map(one => one.name));
        const value = this.expression(), own = this.bound;
        this.bound = outer;
        return this.node("def", { name: "<lambda>", params, own, body: [this.node("return", { value }, line)] }, line);
      }
      const value = this.or();
      if (!this.take("if")) return value;
      const test = this.or();
      this.need("else");
      return this.node("choose", { test, value, other: this.expression() }, line);
    }

    or() { return this.logic("or", () => this.logic("and", () => this.not())); }

    logic(word, part) {
      let left = part();
      while (this.is(word)) left = this.node("logic", { word, line: this.need(word).line, left, right: part() });
      return left;
    }

    not() {
      const { line } = this.token;
      return this.take("not") ? this.node("not", { value: this.not() }, line) : this.comparison();
    }

    comparison() {
      const first = this.binary(1), rest = [], { line } = this.token;
      while (["operator", "keyword"].includes(this.token.kind) && COMPARISONS.has(this.token.value)) {
        let { value: operator } = this.tokens[this.at++];
        if (operator === "not") operator = `not ${this.need("in").value}`;
        if (operator === "is" && this.take("not")) operator = "is not";
        rest.push([operator, this.binary(1)]);
      }
      return rest.length ? this.node("compare", { first, rest }, line) : first;
    }

    binary(least) {
      let left = this.unary();
      for (let strength; this.token.kind === "operator" && (strength = STRENGTH[this.token.value]) >= least;) {
        const { value: operator, line } = this.tokens[this.at++];
        left = this.node("binary", { operator, left, right: this.binary(strength + 1) }, line);
      }
      return left;
    }

    unary() {
      const sign = this.take("-", "+", "~");
      if (sign) return this.node("unary", { operator: sign.value, value: this.unary() }, sign.line);
      const left = this.primary(), power = this.take("**");
      return power ? this.node("binary", { operator: "**", left, right: this.unary() }, power.line) : left;
    }

    primary() {
      let value = this.atom();
      for (let open; (open = this.take("(", "[", "."));) {
        const { line } = open;
        if (open.value === ".") value = this.node("attribute", { value, name: this.name() }, line);
        else if (open.value === "(") value = this.call(value, line);
        else {
          const index = this.list(() => this.slice());
          this.need("]");
          value = this.node("subscript", { value, index }, line);
        }
      }
      return value;
    }

    slice() {
      const { line } = this.token, parts = [null, null, null];
      if (!this.is(":")) {
        const value = this.starred();
        if (!this.is(":")) return value;
        parts[0] = value;
      }
      for (let i = 1; i < 3 && this.take(":"); i++) if (!this.is(":", "]", ",")) parts[i] = this.expression();
      return this.node("slice", { parts }, line);
    }

    call(called, line) {
      const args = [], named = [];
      while (!this.is(")")) {
        const next = this.tokens[this.at + 1];
        if (this.is("**")) lacks("** in a call", line);
        if (this.token.kind === "name" && next.kind === "operator" && next.value === "=") {
          const name = this.name();
          this.need("=");
          named.push([name, this.expression()]);
        } else {
          const value = this.starred();
          if (named.length && value.type !== "star")
            refuse("SyntaxError", "positional argument follows keyword argument", line);
          args.push(this.is("for") ? this.comprehension("list", [value], line) : value);
        }
        if (!this.take(",")) break;
      }
      this.need(")");
      return this.node("call", { called, args, named }, line);
    }

    // element for target in over if test …, behind its element; a dict's has key and value.
    comprehension(into, element, line) {
      const clauses = [], outer = this.bound;
      while (this.take("for")) {
        this.bound = new Set();
        const target = this.targets();
        this.bound = outer;
        this.need("in");
        const clause = { target, over: this.or(), tests: [] };
        while (this.take("if")) clause.tests.push(this.or());
        clauses.push(clause);
      }
      return this.node("comprehension", { into, element, clauses }, line);
    }


    atom() {
      const { kind, value, line } = this.token;
      if (kind === "name") return this.node("name", { name: this.name() }, line);
      if (kind === "number") return this.node("value", { value: this.kind("number").value }, line);
      if (kind === "string") {
        let text = "";
        for (let part; (part = this.kind("string"));) text += part.value;
        return this.node("value", { value: text }, line);
      }
      for (const [word, constant] of [["True", true], ["False", false], ["None", null], ["...", Parser.ELLIPSIS]])
        if (this.take(word)) return this.node("value", { value: constant }, line);
      if (this.take("(")) {
        if (this.take(")")) return this.node("tuple", { items: [] }, line);
        let inner = this.starred();
        if (this.is("for")) inner = this.comprehension("list", [inner], line);
        else if (this.is(",")) inner = this.more(inner, "tuple", ")", line);
        this.need(")");
        return inner;
      }
      if (this.take("[")) {
        if (this.take("]")) return this.node("list", { items: [] }, line);
        const first = this.starred();
        const inner = this.is("for") ? this.comprehension("list", [first], line) : this.more(first, "list", "]", line);
        this.need("]");
        return inner;
      }
      if (this.take("{")) {
        const pairs = [];
        while (!this.is("}")) {
          const key = this.expression();
          if (!this.is(":")) lacks("sets", line);
          this.need(":");
          pairs.push([key, this.expression()]);
          if (this.is("for")) {
            const inner = this.comprehension("dict", pairs[0], line);
            this.need("}");
            return inner;
          }
          if (!this.take(",")) break;
        }
        this.need("}");
        return this.node("dict", { pairs }, line);
      }
      return this.wrong("an expression");
    }

    more(first, type, end, line) {
      const items = [first];
      while (this.take(",") && !this.is(end)) items.push(this.starred());
      return this.node(type, { items }, line);
    }
  }
  Parser.ELLIPSIS = Symbol("...");

  Object.assign(mllama, {
    python: { PyError, refuse, lacks, ELLIPSIS: Parser.ELLIPSIS, parse: text => new Parser(text).program() },
  });
})();
