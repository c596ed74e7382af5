"""HTTP/1.1 for one WSGI application: bodies come into the memory that the application gives.

No WSGI server that we know lets an application say where a body is to go, or sends an answer from
where it is: behind Granian 4 MB were copied three times on their way in, and once more on their way
out.  What is left beside the bytes of a raw socket ``benchmarks/bench_exchange.py`` measures.
"""

from sparkdist.server.http.server import HttpServer

__all__ = ["HttpServer"]
