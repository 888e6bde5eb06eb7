"""nodeagent as its users have it, installed once: the image, the chart, the plugin."""
