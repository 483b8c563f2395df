"use strict";
// Chapter 15: a .pth file is a zip archive. What of it is read when its index is made, what is only found, what is
// never touched, and which check refuses an archive that torch.save does not write.
mllama.figure("zip_members", figure => {
  const text = words => new TextEncoder().encode(words);
  const bytesOf = packed => Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
  // The pickle that torch.save writes for { weight: [[1, 2], [3, 4]], gate: [0.5] }, and one that calls print.
  const PICKLE = bytesOf("gAJ9cQAoWAYAAAB3ZWlnaHRxAWN0b3JjaC5fdXRpbHMKX3JlYnVpbGRfdGVuc29yX3YyCnECKChYBwAAAHN0b3JhZ2VxA2N0"
    + "b3JjaApGbG9hdFN0b3JhZ2UKcQRYAQAAADBxBVgDAAAAY3B1cQZLBHRxB1FLAEsCSwKGcQhLAksBhnEJiWNjb2xsZWN0aW9ucwpPcmRlcmVk"
    + "RGljdApxCilScQt0cQxScQ1YBAAAAGdhdGVxDmgCKChoA2gEWAEAAAAxcQ9oBksBdHEQUUsASwGFcRFLAYVxEoloCilScRN0cRRScRV1Lg==");
  const HARMFUL = new Uint8Array([0x80, 2, ...text("}X\x06\0\0\0weightc__builtin__\nprint\nX\x05\0\0\0hello"),
    0x85, ...text("Rs.")]);
  const floats = numbers => new Uint8Array(Float32Array.from(numbers).buffer);

  const MEMBERS = ["data.pkl", "byteorder", "data/0", "data/1", "version", "notes.sh"];
  const INKS = { "data.pkl": "blue", byteorder: "purple", "data/0": "green", "data/1": "orange", version: "grey", "notes.sh": "ink" };
  const DONE = ["nothing", "packed anew", "a member more", "a number is missing", "compressed", "a member twice",
    "two in one place", "another machine’s bytes", "a pickle that calls print"];
  const done = figure.choice({ label: "What was done to it", options: DONE, value: "a member more" });
  const chosen = figure.choice({ label: "Member", options: MEMBERS, value: "notes.sh" });

  // [name, bytes] of every member.
  function contents() {
    const is = what => done.value === what;
    return [
      ["data.pkl", is("a pickle that calls print") ? HARMFUL : PICKLE],
      ["byteorder", text(is("another machine’s bytes") ? "big" : "little")],
      ["data/0", floats(is("a number is missing") ? [1, 2, 3] : [1, 2, 3, 4])],
      ["data/1", floats([0.5])],
      ["version", text("3\n")],
      ...(is("a member more") ? [["notes.sh", text("rm -rf ~\n")]] : []),
      ...(is("a member twice") ? [["data/1", floats([7])]] : []),
    ];
  }

  function crc32(bytes) {
    let crc = 0xFFFFFFFF;
    for (const byte of bytes) {
      crc ^= byte;
      for (let n = 0; n < 8; n++) crc = crc & 1 ? (crc >>> 1) ^ 0xEDB88320 : crc >>> 1;
    }
    return (crc ^ 0xFFFFFFFF) >>> 0;
  }
  const little = (...pairs) => pairs.flatMap(([bytes, value]) =>
    Array.from({ length: bytes }, (_, i) => Math.floor(value / 256 ** i) % 256));

  // The archive: members at multiples of 64 bytes, as torch.save puts them, unless it was packed anew.
  function archive() {
    const file = [], directory = [], places = {};
    for (const [name, bytes] of contents()) {
      const full = text(`tiny/${name}`), squeezed = done.value === "compressed" && name === "data/0";
      // Deflate without compressing: one block, stored.
      const stored = squeezed
        ? [1, ...little([2, bytes.length], [2, 0xFFFF - bytes.length]), ...bytes] : [...bytes];
      const shares = done.value === "two in one place" && name === "data/1";
      let begin = file.length, extra = [];
      if (done.value !== "packed anew") {
        const room = (128 - (begin + 30 + full.length + 4) % 64) % 64;
        extra = [...text("FB"), ...little([2, room]), ...Array(room).fill(90)];
      }
      const common = extraLength => little([2, 20], [2, 0], [2, squeezed ? 8 : 0], [2, 0], [2, 33], [4, crc32(bytes)],
        [4, stored.length], [4, bytes.length], [2, full.length], [2, extraLength]);
      if (shares) begin = places["data/0"];  // the directory sends both to one place
      else file.push(...text("PK\x03\x04"), ...common(extra.length), ...full, ...extra, ...stored);
      places[name] ??= begin;
      directory.push(...text("PK\x01\x02"), 20, 0, ...common(0),
        ...little([2, 0], [2, 0], [2, 0], [4, 0], [4, begin]), ...full);
    }
    const start = file.length, members = contents().length;
    return [...file, ...directory, ...text("PK\x05\x06"),
      ...little([2, 0], [2, 0], [2, members], [2, members], [4, directory.length], [4, start], [2, 0])];
  }

  // What the reader makes of the bytes: members as it finds them, and the first check that does not hold.
  function read() {
    const bytes = archive(), number = (at, size) => {
      let value = 0;
      for (let i = size - 1; i >= 0; i--) value = 256 * value + bytes[at + i];
      return value;
    };
    const word = (at, size) => String.fromCharCode(...bytes.slice(at, at + size));
    const end = bytes.length - 22, found = [], seen = {};
    let refused = null, at = number(end + 16, 4);
    const refuse = why => { refused ??= why; };
    const start = at;
    for (let n = 0; n < number(end + 10, 2); n++) {
      const [size, wide, header] = [number(at + 24, 4), number(at + 28, 2), number(at + 42, 4)];
      const name = word(at + 46, wide);
      if (number(at + 10, 2) !== 0) refuse(`'${name}' is compressed`);
      if (seen[name]) refuse(`'${name}' is there twice`);
      seen[name] = true;
      const begin = header + 30 + number(header + 26, 2) + number(header + 28, 2);
      found.push({ name: name.replace("tiny/", ""), header, begin, size });
      at += 46 + wide;
    }
    let covered = 0;
    for (const { begin, size } of [...found].sort((a, b) => a.begin - b.begin || a.size - b.size)) {
      if (begin < covered) refuse("its members overlap or end behind it");
      covered = begin + size;
    }
    const opened = refused === null;  // only now is a member looked into
    const content = name => {
      const { begin, size } = found.find(member => member.name === name);
      return word(begin, size);
    };
    if (opened) {
      if (content("byteorder") !== "little") refuse(`its byte order is b'${content("byteorder")}'`);
      const program = content("data.pkl");
      for (const [, module, name] of program.matchAll(/c([\w.]+)\n(\w+)\n/g)) {
        const asked = `${module} ${name}`;
        const known = ["collections OrderedDict", "torch._utils _rebuild_tensor_v2"].includes(asked);
        if (!known && !/^torch \w+Storage$/.test(asked)) refuse(`its pickle asks for '${asked}'`);
      }
      for (const [name, key, size] of [["weight", "data/0", 16], ["gate", "data/1", 4]])
        if (found.find(member => member.name === key).size !== size)
          refuse(`the numbers of ${name} are not where they should be`);
    }
    for (const member of found) {
      const used = ["data.pkl", "byteorder"].includes(member.name);
      member.fate = !opened ? "not touched" : used ? "read"
        : member.name.startsWith("data/") && refused === null ? "place noted" : "not touched";
    }
    return { bytes, found, refused, start };
  }

  const WIDE = 64, CELL = 4.9, HIGH = 10;
  figure.drawing({ width: 320, height: 232 }, svg => {
    const { bytes, found, start } = read();
    svg.text(0, 12, "The file, 64 bytes a row");
    const mark = (from, to, ink, opacity) => {
      for (let row = Math.floor(from / WIDE); row * WIDE < to; row++) {
        const [a, b] = [Math.max(from, row * WIDE), Math.min(to, (row + 1) * WIDE)];
        svg.rect(3 + CELL * (a % WIDE), 20 + 12 * row, CELL * (b - a), HIGH, { fill: ink, "fill-opacity": opacity });
      }
    };
    mark(0, bytes.length, "grey", 0.12);
    mark(start, bytes.length, "grey", 0.4);
    for (const { name, header, begin, size } of found) {
      mark(header, begin, INKS[name], name === chosen.value ? 0.3 : 0.15);
      mark(begin, begin + size, INKS[name], name === chosen.value ? 1 : 0.55);
    }
  });

  figure.drawing({ width: 320, height: 230 }, svg => {
    const { found, refused } = read();
    svg.text(0, 14, "Members, and what becomes of each");
    found.forEach(({ name, begin, size, fate }, i) => {
      const y = 40 + 24 * i;
      svg.rect(4, y - 12, 14, 14, { fill: INKS[name], "fill-opacity": name === chosen.value ? 1 : 0.55 });
      svg.text(26, y, name);
      svg.text(104, y, `at ${begin}, ${size} B`);
      svg.text(216, y, fate);
    });
    svg.text(0, 222, refused === null ? "✓ accepted" : "✗ refused", { size: 14, fill: refused === null ? "ink" : "orange" });
  });

  figure.values(() => read());

  figure.words(() => {
    const { bytes, found, refused } = read(), name = chosen.value;
    const own = found.filter(member => member.name === name);
    const told = own.length ? own.map(({ begin, size, fate }) => {
      const what = { read: "and is read", "place noted": "of which only the place is noted",
        "not touched": "and is never looked into" }[fate];
      return `${name} has ${size} bytes from byte ${begin} on, ${what}`;
    }).join("; ") : `${name} is not in this archive`;
    const verdict = refused === null ? "Accepted: the index has weight and gate" : `Refused: ${refused}`;
    return `${bytes.length} bytes, ${found.length} members; the directory is at the end (dark grey). `
      + `${told}. ${verdict}.`;
  });
});
