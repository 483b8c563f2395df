"use strict";
// Draws the formulas: Sphinx writes them as \(...\), or \[...\] on lines of their own. One that
// is wider than the page scrolls, and takes the keyboard to do so.
const formulaWidths = new ResizeObserver(entries => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
for (const element of document.querySelectorAll(".math")) {
  const [, open, text] = element.textContent.match(/^\s*\\([([])([^]*)\\[)\]]\s*$/) ?? [];
  if (open) katex.render(text, element, { displayMode: open === "[", throwOnError: false });
  if (open === "[") formulaWidths.observe(element);
}
