// Shows the OpenAPI document with Swagger UI.
"use strict";

// Swagger UI's style sheet sets dark colors by a class, not by the reader's preference.
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", colour);
colour();

const place = document.querySelector("#swagger-ui");
SwaggerUIBundle({
  url: place.dataset.openapi,
  domNode: place,
  deepLinking: true,
  // A logged-in user may try the requests that their token allows.
  requestInterceptor: (request) => {
    if (place.dataset.csrf) request.headers["X-CSRF-Token"] = place.dataset.csrf;
    return request;
  },
  // Its numbers have too little contrast on their background.
  syntaxHighlight: { activated: false },
  // Collapsed, like the requests above them.
  defaultModelsExpandDepth: 0,
  plugins: [() => ({
    wrapComponents: {
      // Hidden: the page already has this information, and there is only one server.
      InfoContainer: () => () => null,
      ServersContainer: () => () => null,
      // A link within a button cannot be reached by keyboard; the button changes the address as well.
      DeepLink: (_, system) => ({ text }) => system.React.createElement("span", null, text),
    },
  })],
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});

// One of its selects has no accessible name.
new MutationObserver(() => {
  for (const choice of place.querySelectorAll(".examples-select select:not([aria-label])")) {
    choice.setAttribute("aria-label", "Example");
  }
}).observe(place, { childList: true, subtree: true });
