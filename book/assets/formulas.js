"use strict";
// Draws the formulas: Sphinx writes them as \(...\), or \[...\] on lines of their own.
for (const element of document.querySelectorAll(".math")) {
  const [, open, text] = element.textContent.match(/^\s*\\([([])([^]*)\\[)\]]\s*$/) ?? [];
  if (open) katex.render(text, element, { displayMode: open === "[", throwOnError: false });
}
