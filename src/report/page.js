"use strict";
// Filters the accounts by what is typed; the text stands in the address too (#search=...), so that a view can be passed on.
(function () {
  var search = document.getElementById("search");
  var faulty = document.getElementById("faulty");
  var shown = document.getElementById("shown");
  var rows = Array.prototype.slice.call(document.getElementById("rows").rows);
  var texts = rows.map(function (row) { return row.textContent.toLowerCase(); });
  function filter() {
    var words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    var count = 0;
    rows.forEach(function (row, at) {
      var fits = words.every(function (word) { return texts[at].indexOf(word) >= 0; });
      fits = fits && !(faulty.checked && row.cells[1].textContent === "up to date");
      row.hidden = !fits;
      if (fits) { count += 1; }
    });
    shown.textContent = count === rows.length ? count + " accounts" : count + " of " + rows.length + " accounts";
  }
  function typed() {
    filter();
    try { history.replaceState(null, "", search.value ? "#search=" + encodeURIComponent(search.value) : "#accounts"); } catch (e) { /* a viewer without addresses */ }
  }
  var given = /^#search=(.*)$/.exec(location.hash);
  if (given) {
    try { search.value = decodeURIComponent(given[1]); } catch (e) { search.value = ""; }
  }
  search.addEventListener("input", typed);
  faulty.addEventListener("change", filter);
  filter();
  if (given) { document.getElementById("accounts").scrollIntoView(); }
}());
