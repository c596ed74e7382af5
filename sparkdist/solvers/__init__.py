"""Solvers: one algorithm a file, each a function of fun(w) -> (value, gradient)."""

from sparkdist.solvers._run import NOISE, pseudo_gradient
from sparkdist.solvers.gd import gd
from sparkdist.solvers.lbfgs import lbfgs
from sparkdist.solvers.newton_cg import newton_cg
from sparkdist.solvers.owlqn import owlqn
from sparkdist.solvers.preconditioned_lbfgs import preconditioned_lbfgs

__all__ = [
    "NOISE",
    "gd",
    "lbfgs",
    "newton_cg",
    "owlqn",
    "preconditioned_lbfgs",
    "pseudo_gradient",
]
