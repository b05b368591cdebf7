// SPDX-License-Identifier: Apache-2.0
// Keys for the links to the previous and the next page, and a button that copies.
"use strict";

const LINKS = { ArrowLeft: "prev", ArrowRight: "next", Escape: "up" };

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest && event.target.closest("input, textarea, select, video");
  if (typing || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const link = LINKS[event.key] && document.querySelector(`a[rel="${LINKS[event.key]}"]`);
  if (link) {
    event.preventDefault();
    link.click();
  }
});

for (const button of document.querySelectorAll("button[data-copies]")) {
  // Without https a browser offers no clipboard; a click on the text selects all of it.
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent);
    button.nextElementSibling.textContent = "Copied";
  });
}
