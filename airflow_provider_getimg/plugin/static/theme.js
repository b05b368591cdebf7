// SPDX-License-Identifier: Apache-2.0
// Airflow keeps the chosen theme in localStorage. Not deferred: the first paint must already use it.
"use strict";

try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // A browser may refuse its storage: then the page has the theme of the system.
}
