"""Any order of operations against a plain model, and whatever else hypothesis can say of the platform.

`PROPERTY_EXAMPLES=500` tries so many, where `make test` takes few.
"""
