"""A router under random faults for as long as asked (`make soak`), and whether it leaks or forgets.

A real router process, engines that fail, are killed and come again, an agent, and clients that leave
at any time. In the end every request has to be in the usage ledger as its client saw it, and nothing
may be left over: no file, task, memory, place or connection.
"""
