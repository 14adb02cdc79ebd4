"""Pictures of a report as inline SVG: pure functions from figures to a picture.

Each is drawn 360 units wide, which is the width of a telephone, so that its words are never smaller than they are
here; on wider screens several stand side by side. Colours are classes of the page (templates/page.css), so that they
suit light and dark.
"""
