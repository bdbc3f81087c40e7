"""An estimate, not a measurement: what the report's real job asks of machines larger than this one.

About 583,000 images (0.7 of 832,5xx) at 224 px through ResNet-36, on A100s. Counted here are the
operations and the parameters, measured is the decoding of a core; the rest is data sheets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.machine import training_flops
from common.networks.resnet36 import ResNet36
from common.networks.summary import count_parameters, without_weights
from common.reporting.tables import table

GPUS = (1, 2, 8, 64)
COUNTED_IMAGES = 4  # of the step whose operations are counted


@dataclass(frozen=True)
class Job:
    """What is trained, and on what; rates are a second's, sizes bytes.

    `share_of_peak` is what such convolutions reach on a GPU in bf16. Links: NVLink inside a node of
    eight, 200 Gbit/s between nodes, PCIe 4.0 from the host. A process reads its images from a
    disk of its node through the packed cache, whose squares have sides of 256 px.
    """

    images: int = 583_000
    batch_a_gpu: int = 128
    flops_an_image: float = 0
    parameters: int = 0
    gpu_peak: float = 312e12
    share_of_peak: float = 0.4
    nvlink: float = 300e9
    network: float = 25e9
    pcie: float = 25e9
    disk: float = 3e9
    gpus_a_node: int = 8
    cores_a_gpu: int = 8
    decoded_a_core: float = 0
    image_bytes: int = 256 * 256 * 3

    @property
    def cache_bytes(self) -> int:
        """The packed cache's size."""
        return self.images * self.image_bytes

    def compute_seconds(self) -> float:
        """A step's on one GPU."""
        return self.batch_a_gpu * self.flops_an_image / (self.gpu_peak * self.share_of_peak)

    def all_reduce_seconds(self, gpus: int) -> float:
        """DistributedDataParallel's sum of fp32 gradients around a ring (Patarasuk & Yuan 2009)."""
        link = self.nvlink if gpus <= self.gpus_a_node else self.network
        return 2 * (gpus - 1) / gpus * 4 * self.parameters / link

    def data_parallel_seconds(self, gpus: int) -> float:
        """DataParallel's: the first GPU sends each other one all weights, takes all gradients."""
        return 2 * (gpus - 1) * 4 * self.parameters / self.nvlink

    def reading_seconds(self, gpus: int) -> float:
        """Reading a step's images from the cache: the slower of a node's disk and its PCIe."""
        in_node = min(gpus, self.gpus_a_node) * self.batch_a_gpu * self.image_bytes
        return max(in_node / self.disk, self.batch_a_gpu * self.image_bytes / self.pcie)

    def decoding_seconds(self, gpus: int) -> float:
        """Packing, once before the first epoch."""
        return self.images / (self.decoded_a_core * self.cores_a_gpu * gpus)

    def row(self, gpus: int) -> dict:
        """Seconds of a step's parts, which overlap: the longest is the bottleneck.

        Keys: gpus, compute, all_reduce, data_parallel (None over several nodes), reading,
        bottleneck, epoch_minutes and packing_minutes.
        """
        parts = {
            "compute": self.compute_seconds(),
            "all_reduce": self.all_reduce_seconds(gpus),
            "reading": self.reading_seconds(gpus),
        }
        bottleneck = max(parts, key=parts.__getitem__)
        steps = self.images / (self.batch_a_gpu * gpus)
        in_node = gpus <= self.gpus_a_node
        return {
            "gpus": gpus,
            **parts,
            "data_parallel": self.data_parallel_seconds(gpus) if in_node else None,
            "bottleneck": bottleneck.replace("_", "-"),
            "epoch_minutes": steps * parts[bottleneck] / 60,
            "packing_minutes": self.decoding_seconds(gpus) / 60,
        }


def counted_job(decoded_a_core: float) -> Job:
    """The report's job, with what is counted here and the images that a core decodes a second."""
    return replace(
        Job(),
        flops_an_image=training_flops(lambda: ResNet36(650), COUNTED_IMAGES, 224) / COUNTED_IMAGES,
        parameters=count_parameters(without_weights(lambda: ResNet36(650))),
        decoded_a_core=decoded_a_core,
    )


def estimate(decoded_a_core: float) -> dict:
    """{"job": the numbers it is made from, "rows": a `Job.row` for each number of GPUs}."""
    job = counted_job(decoded_a_core)
    return {"job": vars(job), "rows": [job.row(gpus) for gpus in GPUS]}


def text(found: Mapping) -> str:
    """The estimate as a table, and how such a job is started."""
    job = Job(**found["job"])
    caption = (
        f"AN ESTIMATE, not measured: {job.images:,} images of 224 px an epoch, ResNet-36, bf16,"
        f" {job.batch_a_gpu} images a GPU.\nCounted: {job.flops_an_image / 1e9:.0f} GFLOP an image,"
        f" {4 * job.parameters / 1e6:.0f} MB of gradients; measured: {job.decoded_a_core:.0f}"
        f" images/s decoded by a core.\nAssumed: A100s that reach {job.share_of_peak:.0%} of"
        f" {job.gpu_peak / 1e12:.0f} TFLOP/s; links of {job.nvlink / 1e9:.0f} GB/s in a node of"
        f" {job.gpus_a_node}, {job.network / 1e9:.0f} between nodes; disks of"
        f" {job.disk / 1e9:.0f} GB/s; {job.cores_a_gpu} cores a GPU.\n"
        f"The packed cache takes {job.cache_bytes / 1e9:.0f} GB. Milliseconds of a step's parts:"
    )
    rows = [
        {key: 1000 * value if isinstance(value, float) and "minutes" not in key else value
         for key, value in row.items()}
        for row in found["rows"]
    ]  # fmt: skip
    columns = {
        "GPUs": "{gpus}",
        "compute": "{compute:.0f}",
        "DDP's gradients": "{all_reduce:.1f}",
        "DataParallel's": "{data_parallel:.1f}",
        "reading": "{reading:.1f}",
        "bottleneck": "{bottleneck}",
        "min an epoch": "{epoch_minutes:.1f}",
        "min of packing": "{packing_minutes:.1f}",
    }
    command = (
        "torchrun --nnodes 8 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST:29500"
        "\n    problem3_resnet36.py 3.4 --data DIR --classes 650 --per-class 1281 --image-size 224"
    )
    return f"{table(caption, columns, rows)}On eight nodes, the same on each:\n  {command}\n"
