// Shows the OpenAPI document with Swagger UI.
"use strict";

// Its style sheet has dark colours for a class, not for what the reader prefers.
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", colour);
colour();

const place = document.querySelector("#swagger-ui");
SwaggerUIBundle({
  url: place.dataset.openapi,
  domNode: place,
  deepLinking: true,
  // Somebody who is logged in may try what their token allows.
  requestInterceptor: (request) => {
    if (place.dataset.csrf) request.headers["X-CSRF-Token"] = place.dataset.csrf;
    return request;
  },
  // Its numbers are too dark for their ground.
  syntaxHighlight: { activated: false },
  // Collapsed, like the requests above them.
  defaultModelsExpandDepth: 0,
  plugins: [() => ({
    wrapComponents: {
      // The page around it says what this is, and there is one server.
      InfoContainer: () => () => null,
      ServersContainer: () => () => null,
      // A link within a button cannot be reached; the button changes the address too.
      DeepLink: (_, system) => ({ text }) => system.React.createElement("span", null, text),
    },
  })],
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});

// One of its choices has no name.
new MutationObserver(() => {
  for (const choice of place.querySelectorAll(".examples-select select:not([aria-label])")) {
    choice.setAttribute("aria-label", "Example");
  }
}).observe(place, { childList: true, subtree: true });
