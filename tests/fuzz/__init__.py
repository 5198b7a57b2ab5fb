"""Hostile bytes against everything that reads what others wrote: ``make fuzz``.

``targets`` lists the readers.  Inputs that took a reader a new way are kept in ``.cache/fuzz``, and
the next run begins with them; small ones worth keeping go to ``seeds/TARGET/`` in git.  An input
that failed is written to ``.cache/fuzz/found/``, and the command that runs it again is printed.
"""
