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

  // One configuration, wherever it is drawn: pointing at a row or a mark brings it out everywhere; its button in the
  // ranking, which the keyboard reaches too, keeps it.
  var main = doc.querySelector('main'), kept = null, shown = null;
  function show(label) {
    label = label === null ? kept : label;
    if (label === shown) { return; }
    shown = label;
    all('[data-config].on').forEach(function (mark) { mark.classList.remove('on'); });
    all('svg.chart').forEach(function (chart) {
      var marks = all('[data-config]', chart).filter(function (m) { return m.getAttribute('data-config') === label; });
      marks.forEach(function (mark) { mark.classList.add('on'); });
      chart.classList.toggle('dim', marks.length > 0);
    });
    all('tr[data-config]').forEach(function (row) {
      row.classList.toggle('on', row.getAttribute('data-config') === label);
    });
  }
  function labelOf(target) {
    var mark = target.closest ? target.closest('[data-config]') : null;
    return mark ? mark.getAttribute('data-config') : null;
  }
  main.addEventListener('pointerover', function (event) { show(labelOf(event.target)); });
  main.addEventListener('pointerleave', function () { show(null); });
  all('button.pick').forEach(function (button) {
    button.addEventListener('click', function () {
      var label = labelOf(button);
      kept = kept === label ? null : label;
      all('button.pick').forEach(function (other) {
        other.setAttribute('aria-pressed', String(kept !== null && labelOf(other) === kept));
      });
      show(kept);
    });
  });

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
