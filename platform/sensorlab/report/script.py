"""What the page can do beyond being read. All of it works from the keyboard or is convenience only."""

SCRIPT = """
(function () {
  'use strict';
  var doc = document;
  function all(selector, root) { return Array.prototype.slice.call((root || doc).querySelectorAll(selector)); }

  // Sorting: a click on a column's name; again for the other direction.
  all('table.sortable').forEach(function (table) {
    var heads = all('thead th', table);
    heads.forEach(function (head, column) {
      head.querySelector('button').addEventListener('click', function () {
        var up = head.getAttribute('aria-sort') !== 'ascending';
        heads.forEach(function (other) { other.removeAttribute('aria-sort'); });
        head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
        var body = table.tBodies[0];
        function key(row) {
          var cell = row.cells[column], given = cell.getAttribute('data-sort');
          return given === null ? cell.textContent : given;
        }
        function compare(a, b) {
          var x = key(a), y = key(b), nx = parseFloat(x), ny = parseFloat(y);
          var order = isNaN(nx) && isNaN(ny) ? x.localeCompare(y) : isNaN(nx) ? 1 : isNaN(ny) ? -1 : nx - ny;
          return up ? order : -order;
        }
        all('tr', body).sort(compare).forEach(function (row) { body.appendChild(row); });
      });
    });
  });

  all('button.larger').forEach(function (button) {
    button.hidden = false;
    button.addEventListener('click', function () {
      var large = button.nextElementSibling.classList.toggle('large');
      button.setAttribute('aria-pressed', String(large));
    });
  });

  // One configuration, wherever it is drawn: pointing at a row or a mark brings it out everywhere.
  var main = doc.querySelector('main');
  function show(label) {
    all('[data-config].on').forEach(function (mark) { mark.classList.remove('on'); });
    all('svg.chart').forEach(function (chart) { chart.classList.toggle('dim', label !== null); });
    if (label === null) { return; }
    all('[data-config]').forEach(function (mark) {
      if (mark.getAttribute('data-config') === label) { mark.classList.add('on'); }
    });
  }
  function labelOf(target) {
    var mark = target.closest ? target.closest('[data-config]') : null;
    return mark ? mark.getAttribute('data-config') : null;
  }
  var shown = null;
  function follow(event) {
    var label = labelOf(event.target);
    if (label !== shown) { shown = label; show(label); }
  }
  main.addEventListener('pointerover', follow);
  main.addEventListener('pointerleave', function () { shown = null; show(null); });
  main.addEventListener('focusin', follow);

  // Titles of marks at once, instead of after the browser's delay.
  var tip = doc.createElement('div');
  tip.id = 'tip'; tip.hidden = true; tip.setAttribute('aria-hidden', 'true'); doc.body.appendChild(tip);
  all('svg title').forEach(function (title) {
    var mark = title.parentNode, text = title.textContent;
    if (mark.tagName.toLowerCase() === 'svg') { mark.setAttribute('aria-label', text); }
    else { mark.setAttribute('data-tip', text); }
    mark.removeChild(title);
  });
  doc.addEventListener('pointermove', function (event) {
    var mark = event.target.closest ? event.target.closest('[data-tip]') : null;
    tip.hidden = !mark;
    if (!mark) { return; }
    tip.textContent = mark.getAttribute('data-tip');
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + 'px';
    tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + 'px';
  });
})();
"""
