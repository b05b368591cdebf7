// SPDX-License-Identifier: Apache-2.0
// The theme that was chosen in Airflow, which keeps it for its origin. Not deferred: the page is drawn in it at once.
"use strict";

try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // A browser may refuse its storage: then the page has the theme of the system.
}
