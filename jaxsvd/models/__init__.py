"""The classic models on the SVD: plain functions of arrays and of states that are pytrees."""

from . import pca as pca
