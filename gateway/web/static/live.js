// A page whose numbers move says so when they stand still, and leads to the login when its session is over.
(() => {
  const show = (isStill) => {
    document.getElementById("still").hidden = !isStill;
  };
  document.addEventListener("htmx:sse:error", (event) => {
    if (event.detail.status === 401) {
      location.reload(); // the guard leads to the login
    } else {
      show(true);
    }
  });
  document.addEventListener("htmx:error", () => show(true)); // not even the first answer came
  document.addEventListener("htmx:response:error", () => show(true));
  document.addEventListener("htmx:sse:after:connection", () => show(false));
})();
