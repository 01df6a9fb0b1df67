"""Text for the screen: numbers, layer names, safe text, one styled line."""
