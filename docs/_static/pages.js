// Read from disk, there is no service above these pages.
"use strict";

if (location.protocol === "file:") document.querySelector(".announcement")?.remove();
