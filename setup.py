"""Build the CPU kernels for RoI pooling and selective search if a compiler is available; see pyproject.toml."""

from setuptools import Extension, setup

HEADERS = ("instruction_sets", "roi_bins", "roi_pool_lanes", "roi_pool_level", "selective_search_level")

setup(
    ext_modules=[
        Extension(
            "fastrcnn.ops._roi_cpu",
            sources=["fastrcnn/ops/csrc/roi_pool_cpu.cpp", "fastrcnn/ops/csrc/selective_search.cpp"],
            depends=[f"fastrcnn/ops/csrc/{n}.h" for n in HEADERS],
            # No fused multiply-add: each operation is rounded separately, so results are bit-identical everywhere.
            extra_compile_args=["-O3", "-std=c++17", "-ffp-contract=off", "-pthread", "-Wno-psabi"],
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,  # without a compiler, the installation succeeds but pooling is slower
        )
    ]
)
