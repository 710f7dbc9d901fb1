// The code comes in the fragment, which no server sees. Take it out of the
// address bar, and post it.
const code = location.hash.slice(1);
if (code) {
  history.replaceState(null, "", location.pathname);
  document.getElementById("code").value = code;
  document.getElementById("login").requestSubmit();
}
