"""One look for everything that is drawn: colours, fonts, and the rules of a page."""

INK, QUIET, LINE, PAPER, GROUND = "#1c2330", "#5b6472", "#dfe3ea", "#ffffff", "#f4f6f9"
"""Text, text that stands back, rules, the paper of a section, and what lies around it."""
COLOURS = ("#d1603d", "#2457a6", "#3f8f6b", "#8a5aa8", "#b08a1e")
"""Of series, in their order."""
MINUS, ZERO, PLUS, NONE = COLOURS[0], "#ffffff", COLOURS[1], "#eceff4"
"""Of negative numbers, of zero, of positive ones, and of no number."""
NODES = {"head": "#eaf0f9", "kv": "#f3edf8", "group": "#f3edf8", "mlp": "#eef5f0"}
"""Of the nodes of a circuit, by their kind; `GROUND` is that of all others."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
}
"""Of plotly. Only these buttons: its own set has one that sends the figure to a server."""
PAGE = f"""
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: {GROUND}; color: {INK}; font: 16px/1.55 {FONT}; }}
main, nav div {{ max-width: 980px; margin: 0 auto; padding: 0 20px; }}
main {{ padding-bottom: 80px; }}
nav {{ position: sticky; top: 0; z-index: 9; background: {PAPER};
  border-bottom: 1px solid {LINE}; }}
nav div {{ display: flex; gap: 4px 20px; flex-wrap: wrap; padding: 10px 20px; font-size: 15px; }}
a {{ color: {COLOURS[1]}; text-decoration: none; }} a:hover {{ text-decoration: underline; }}
section {{ background: {PAPER}; border: 1px solid {LINE}; border-radius: 10px;
  padding: 16px 24px; margin: 22px 0; scroll-margin-top: 84px; }}
h1 {{ margin: 28px 0 2px; font-size: 28px; line-height: 1.25; }}
h2 {{ margin: 4px 0 8px; font-size: 21px; }}
.quiet {{ color: {QUIET}; font-size: 14px; }} .wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ border-bottom: 1px solid {LINE}; }} #about td {{ overflow-wrap: anywhere; }}
@media (max-width: 600px) {{
  nav {{ position: static; }}
  section {{ padding: 12px 14px; margin: 14px -20px; }}
}}
"""
"""Rules that all pages share, in CSS."""
