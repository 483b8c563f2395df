"use strict";
// The search page: sections in which all words of a question stand, the best first.
//
// A word is found as a whole or as the beginning of one; numbers with or without commas; names of code as they
// are written. "several words" in quotes stand beside each other. A glossary's term comes first.
(() => {
  const MOST = 40, AROUND = 110;  // results; characters of text around what was found
  const plain = text => text.toLowerCase().replace(/(\d),(?=\d{3}\b)/g, "$1");
  const escaped = word => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

  // Words and phrases of a question, each as an expression that finds it.
  function termsOf(question) {
    return [...plain(question).matchAll(/"([^"]+)"|(\S+)/g)].map(([, phrase, word]) => {
      const text = escaped(phrase ?? word).replace(/\s+/g, "\\s+");
      return new RegExp(`(?<![\\p{L}\\p{N}_])${text}`, "gu");
    });
  }

  const count = (text, term) => (text.match(term) ?? []).length;

  function found(question, sections) {
    const terms = termsOf(question), whole = plain(question).replaceAll('"', "").trim();
    if (!terms.length) return [];
    return sections.map(([place, page, title, text]) => {
      const [low, head] = [plain(text), plain(title)];
      let score = 0;
      for (const term of terms) {
        const [above, below] = [count(head, term), count(low, term)];
        if (!above && !below) return null;
        score += 8 * Math.min(above, 1) + Math.log2(1 + below);
      }
      if (head === whole) score += place.includes("glossary") ? 100 : 20;
      if (terms.length > 1 && `${head} ${low}`.includes(whole)) score += 4;
      return { place, page, title, text, score };
    }).filter(Boolean).sort((a, b) => b.score - a.score).slice(0, MOST);
  }

  const el = (tag, attributes, ...children) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  };

  // The text around the first thing found, and what was found marked.
  function excerpt(text, terms) {
    const first = Math.min(...terms.map(term => plain(text).search(term)).filter(at => at >= 0));
    const begin = Number.isFinite(first) ? Math.max(0, first - AROUND) : 0;
    const piece = text.slice(begin, begin + 2 * AROUND), parts = [];
    let done = 0;
    const marks = terms.flatMap(term => [...plain(piece).matchAll(term)].map(m => [m.index, m[0].length]));
    for (const [at, length] of marks.sort((a, b) => a[0] - b[0])) {
      if (at < done) continue;
      parts.push(piece.slice(done, at), el("mark", {}, piece.slice(at, at + length)));
      done = at + length;
    }
    return [begin ? "… " : "", ...parts, piece.slice(done), begin + piece.length < text.length ? " …" : ""];
  }

  function show(question, root, results) {
    const terms = termsOf(question);
    const said = results.length === MOST ? `The ${MOST} best sections` : results.length === 1
      ? "1 section" : `${results.length} sections`;
    results = results.map(({ place, page, title, text }) => el("li", {},
      el("a", { href: place }, title),
      ...(title === page ? [] : [el("span", { className: "search-page" }, ` in ${page}`)]),
      el("p", {}, ...excerpt(text, terms))));
    root.replaceChildren(el("p", { role: "status" }, `${said} with “${question}”.`), el("ul", {}, ...results));
  }

  async function sections() {
    const bytes = Uint8Array.from(atob(SECTIONS), character => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  const question = new URLSearchParams(location.search).get("q") ?? "";
  const root = document.querySelector("#search-results");
  for (const input of document.querySelectorAll("form.bd-search input[name=q]")) input.value = question;
  if (question.trim()) sections().then(all => show(question.trim(), root, found(question, all)));
})();
