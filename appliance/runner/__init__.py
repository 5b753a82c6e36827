"""What runs inside the sandbox: one model, one channel, nothing else.

``main`` builds the sandbox around itself and then serves; ``channel`` speaks with the gateway; ``engine`` computes;
``chat`` renders conversations into prompts. ``bindings`` is everything of them that must be imported beforehand.
"""
