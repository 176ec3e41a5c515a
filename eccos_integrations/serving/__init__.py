"""Calls under way: limits that hold, decisions for waiting callers, what came of them."""
