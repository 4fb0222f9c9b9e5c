"""The checks of the doctor: pure functions from facts to findings, by the object that they examine.

A check yields nothing if all is well. Where one fault explains another, only the first is reported.
"""
