"""The review as a program: every numbered objection of the reviews, put to every design.

An objection is a row of ``objections.OBJECTIONS`` and a function from the name of a design to a ``Result``;
nothing is decided beforehand. Where it comes from is upstream.md, section 4 (the review of the RFC of March
2024 and those that followed); the properties are in our words. No kernels here: what runs is the model.
"""
