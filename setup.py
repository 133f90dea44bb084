"""Builds the RoI pooling kernel for the CPU, where there is a compiler. All else stands in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "fastrcnn.ops._roi_cpu",
            sources=["fastrcnn/ops/csrc/roi_pool_cpu.cpp"],
            depends=["fastrcnn/ops/csrc/roi_bins.h", "fastrcnn/ops/csrc/roi_pool_lanes.h"],
            # No fused multiply-add: the bin edges are float32, operation by operation, on every machine.
            extra_compile_args=["-O3", "-std=c++17", "-ffp-contract=off", "-pthread"],
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,  # without a compiler the installation succeeds, and pooling is slower
        )
    ]
)
