"""The classic models on the SVD: plain functions of arrays and of states that are pytrees."""

from . import image as image
from . import pca as pca
from . import robust as robust
