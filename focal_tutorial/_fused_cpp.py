"""The focal loss and its gradient on a CPU with a compiler: one pass over the logits in C++, built on first use.

The source below needs no header of PyTorch, so a compiler builds it in a few seconds; the library is kept in the
user's cache directory, under a name that depends on the source, the compiler and the processor. Without a compiler, or
with a directory that cannot be written, `library()` is None and the caller takes the path of `_fused_cpu.py`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from platformdirs import user_cache_dir
from torch import Tensor

SOURCE = r"""
#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <dlfcn.h>
#include <thread>
#include <vector>

static const int BLOCK = 2048;  // elements, in whole rows: a block's scratch stays in the first-level cache

static const float HUGE_LOGIT = 1e30f;  // stands for infinity where that would be multiplied by 0

static inline float as_float(int32_t i) { float f; std::memcpy(&f, &i, 4); return f; }

// exp(y + lo) for y <= 0 and a small lo, right to the last bits down to the subnormals; NaN stays NaN
static inline float exp_negative(float y, float lo) {
  y = y < -104.f ? -104.f : y;
  float k = y * 1.44269504f + 12582912.f;  // rounds to an integer
  k -= 12582912.f;
  float r = (y - k * 0.693359375f) + k * 2.12194440e-4f + lo;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  int32_t n = (int32_t)k, half = n / 2;  // 2^n in two steps, as 2^-150 is no float
  return p * as_float((half + 127) << 23) * as_float((n - half + 127) << 23);
}

// log(1 + e) for e in [0, 1]: e times a polynomial, 2.3e-7
static inline float log1p_unit(float e) {
  float p = 0.005126102141f;
  p = p * e - 0.029074064677f;
  p = p * e + 0.07751608674f;
  p = p * e - 0.13602247622f;
  p = p * e + 0.19076880736f;
  p = p * e - 0.24835398989f;
  p = p * e + 0.33318121708f;
  p = p * e - 0.49999444976f;
  p = p * e + 0.99999996593f;
  return p * e;
}

// q^gamma. TWICE is 2 gamma where that is 0 ... 10, or -1. Else exp(gamma log q) with log q = -distance - l
template <int TWICE>
static inline float power(float q, float distance, float l, double gamma) {
  if constexpr (TWICE < 0) {
    // the product in two floats, as exp turns an absolute error into a relative one
    const float g = (float)gamma, far = distance > HUGE_LOGIT ? HUGE_LOGIT : distance;
    const float a = g * far, b = g * l, y = a + b;
    const float lo = __builtin_fmaf(g, far, -a) + ((a - y) + b) + (float)(gamma - (double)g) * far;
    return exp_negative(-y, y < 104.f ? -lo : 0.f);
  } else {
    float result = TWICE % 2 ? std::sqrt(q) : 1.f, square = q * q;
    if constexpr (TWICE & 2) result *= q;
    if constexpr (TWICE & 4) result *= square;
    if constexpr (TWICE & 8) result *= square * square;
    return result;
  }
}

// The focal loss of logit x whose target is 0, and its derivative
template <int TWICE>
static inline float negative_term(float x, double gamma) {
  float a = std::fabs(x), e = exp_negative(-a, 0.f), r = 1.f / (1.f + e), l = log1p_unit(e);
  bool wrong = x >= 0;
  float q = wrong ? r : e * r, ce = wrong ? l + a : l;
  return power<TWICE>(q, wrong ? 0.f : a, l, gamma) * ce;
}

template <int TWICE>
static inline float negative_slope(float x, double gamma) {
  float a = std::fabs(x);
  a = a > HUGE_LOGIT ? HUGE_LOGIT : a;  // 0 * inf would be NaN
  float e = exp_negative(-a, 0.f), r = 1.f / (1.f + e), l = log1p_unit(e);
  bool wrong = x >= 0;
  float q = wrong ? r : e * r, p = wrong ? e * r : r, ce = wrong ? l + a : l;
  return power<TWICE>(q, wrong ? 0.f : a, l, gamma) * ((float)gamma * p * ce + q);
}

// The same with target t in [0, 1], hard or soft: `_value` and `_slope` of focal_term.py
template <int TWICE, bool SOFT>
static inline float soft_power(float q, float wrong, float a, float l, double gamma) {
  if constexpr (TWICE < 0 && SOFT) return (float)std::pow((double)q, gamma);  // slow; soft targets are rare
  return power<TWICE>(q, wrong == 0.f ? a : 0.f, l, gamma);
}

template <int TWICE, bool SOFT>
static inline float term(float x, float t, double gamma) {
  float a = std::fabs(x), e = exp_negative(-a, 0.f), r = 1.f / (1.f + e), l = log1p_unit(e);
  float wrong = x < 0 ? t : 1.f - t;
  float ce = l + (wrong == 0.f ? 0.f : wrong * a), q = (wrong + (1.f - wrong) * e) * r;
  return ce > FLT_MAX ? ce : soft_power<TWICE, SOFT>(q, wrong, a, l, gamma) * ce;
}

template <int TWICE, bool SOFT>
static inline float slope(float x, float t, double gamma) {
  float a = std::fabs(x);
  a = a > HUGE_LOGIT ? HUGE_LOGIT : a;
  float e = exp_negative(-a, 0.f), r = 1.f / (1.f + e), l = log1p_unit(e);
  float wrong = x < 0 ? t : 1.f - t, right = (1.f - wrong) * e, d = wrong + right;
  float ratio = (e + FLT_MIN) / (d + FLT_MIN);  // 1 where both vanish
  float s = ((float)gamma * ratio * (2.f * wrong - 1.f) * (l + wrong * a) + (wrong - right)) * r;
  s *= soft_power<TWICE, SOFT>(d * r, wrong, a, l, gamma);
  return x < 0 ? -s : s;
}

struct Job {
  const void *x, *targets;  // (rows, columns); int64 labels (rows) or floats (rows, columns)
  const float *positive, *negative, *grad;  // weights (columns) each; grad: one number or (rows, columns)
  void *out;
  double *partial;  // one sum for each block
  int64_t rows, columns;
  double gamma;
  int32_t bfloat, dense, grads;
};

static const float *load(const void *p, int64_t i, int64_t n, bool bfloat, float *buffer) {
  if (!bfloat) return (const float *)p + i;
  const uint16_t *b = (const uint16_t *)p + i;
  for (int64_t j = 0; j < n; j++) buffer[j] = as_float((int32_t)((uint32_t)b[j] << 16));
  return buffer;
}

static void store(const float *values, void *p, int64_t i, int64_t n, bool bfloat) {
  if (!bfloat) {
    std::memcpy((float *)p + i, values, n * sizeof(float));
    return;
  }
  uint16_t *b = (uint16_t *)p + i;
  for (int64_t j = 0; j < n; j++) {
    uint32_t u;
    std::memcpy(&u, values + j, 4);
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    b[j] = (u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)rounded;
  }
}

static double sum(const float *v, int64_t n) {
  float lanes[16] = {0};
  int64_t j = 0;
  for (; j + 16 <= n; j += 16)
    for (int k = 0; k < 16; k++) lanes[k] += v[j + k];
  double total = 0;
  for (int k = 0; k < 16; k++) total += lanes[k];
  for (; j < n; j++) total += v[j];
  return total;
}

template <int TWICE, bool BACKWARD>
static void blocks(const Job &job, int64_t first, int64_t last, int64_t height) {
  const int64_t K = job.columns, size = height * K;
  const double gamma = job.gamma;
  std::vector<float> scratch(4 * size);
  float *negative = scratch.data(), *positive = negative + size, *result = negative + 2 * size,
        *converted = negative + 3 * size;
  for (int64_t i = 0; i < size; i++) {  // the weights, repeated for every row of a block
    negative[i] = job.negative[i % K];
    positive[i] = job.positive[i % K];
  }
  for (int64_t block = first; block < last; block++) {
    const int64_t row = block * height, start = row * K;
    const int64_t height_here = std::min(height, job.rows - row), n = height_here * K;
    const float *x = load(job.x, start, n, job.bfloat, converted);
    if (job.dense) {
      const float *t = (const float *)job.targets + start;
      bool soft = false;
      for (int64_t i = 0; i < n; i++) soft |= t[i] != 0.f && t[i] != 1.f;
      if (soft && TWICE < 0)
        for (int64_t i = 0; i < n; i++)
          result[i] = BACKWARD ? slope<TWICE, true>(x[i], t[i], gamma) : term<TWICE, true>(x[i], t[i], gamma);
      else
        for (int64_t i = 0; i < n; i++)
          result[i] = BACKWARD ? slope<TWICE, false>(x[i], t[i], gamma) : term<TWICE, false>(x[i], t[i], gamma);
      for (int64_t i = 0; i < n; i++) result[i] *= t[i] * positive[i] + (1.f - t[i]) * negative[i];
    } else {
      for (int64_t i = 0; i < n; i++)
        result[i] = (BACKWARD ? negative_slope<TWICE>(x[i], gamma) : negative_term<TWICE>(x[i], gamma)) * negative[i];
      const int64_t *labels = (const int64_t *)job.targets + row;
      for (int64_t j = 0; j < height_here; j++) {
        const int64_t label = labels[j];
        if (label == -2) std::fill_n(result + j * K, K, 0.f);
        if (label < 0 || label >= K) continue;
        const float z = -x[j * K + label];  // FL(x, 1) = FL(-x, 0)
        result[j * K + label] =
            (BACKWARD ? -negative_slope<TWICE>(z, gamma) : negative_term<TWICE>(z, gamma)) * job.positive[label];
      }
    }
    if (BACKWARD) {
      if (job.grads)
        for (int64_t i = 0; i < n; i++) result[i] *= job.grad[start + i];
      else
        for (int64_t i = 0; i < n; i++) result[i] *= job.grad[0];
    } else {
      job.partial[block] = sum(result, n);
    }
    if (job.out) store(result, job.out, start, n, job.bfloat);
  }
}

// Run share(0) ... share(shares - 1) on the threads of PyTorch's own pool where its OpenMP has one to give: threads of
// ours would compete with the pool's, which spin for a while after each of PyTorch's operations.
template <class Share>
static void in_parallel(const Share &share, int shares) {
  if (shares <= 1) return share(0);
  struct Work { const Share &share; int shares; std::atomic<int> next; } work{share, shares, {0}};
  auto take = [](void *data) {  // each thread takes what is left, so a team of any size does it all
    Work &w = *static_cast<Work *>(data);
    for (int i; (i = w.next.fetch_add(1)) < w.shares;) w.share(i);
  };
  typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);
  static const Parallel parallel = (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");
  if (parallel) return parallel(take, &work, shares, 0);
  std::vector<std::thread> others;
  for (int i = 1; i < shares; i++) others.emplace_back(take, &work);
  take(&work);
  for (auto &other : others) other.join();
}

template <bool BACKWARD>
static void run(const Job &job, int threads) {
  const int64_t height = std::max<int64_t>(1, BLOCK / job.columns), count = (job.rows + height - 1) / height;
  auto work = [&](int64_t first, int64_t last) {
    const double twice = 2 * job.gamma;
#define CASE(T) if (twice == T) return blocks<T, BACKWARD>(job, first, last, height)
    CASE(0); CASE(1); CASE(2); CASE(3); CASE(4); CASE(6); CASE(8); CASE(10);
    blocks<-1, BACKWARD>(job, first, last, height);
  };
  threads = (int)std::min<int64_t>(threads, (count + 15) / 16);
  const int64_t shares = std::max(1, threads);
  in_parallel([&](int64_t i) { work(count * i / shares, count * (i + 1) / shares); }, (int)shares);
}

extern "C" int64_t focal_blocks(int64_t rows, int64_t columns) {
  const int64_t height = std::max<int64_t>(1, BLOCK / columns);
  return (rows + height - 1) / height;
}
extern "C" void focal_forward(const Job *job, int threads) { run<false>(*job, threads); }
extern "C" void focal_backward(const Job *job, int threads) { run<true>(*job, threads); }
"""
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ldl", "-fno-math-errno", "-fno-trapping-math")


class _Job(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "targets", "positive", "negative", "grad", "out", "partial")),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("gamma", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("bfloat", "dense", "grads")),
    )


def supports(x: Tensor) -> bool:
    """Whether this path computes logits of this dtype; float16 and float64 take the other one."""
    return x.dtype in (torch.float32, torch.bfloat16)


def forward(x: Tensor, targets: Tensor, weight: Tensor, gamma: float, out: Tensor | None) -> Tensor:
    """As `_fused_cpu.forward`; contiguous x and targets."""
    built = library()
    assert built is not None
    partial = torch.empty(built.focal_blocks(x.shape[0], x.shape[1]), dtype=torch.float64)
    _call(built.focal_forward, x, targets, weight, gamma, out, partial, None)
    return partial.sum()


def backward(grad: Tensor, x: Tensor, targets: Tensor, weight: Tensor, gamma: float, out: Tensor) -> None:
    """As `_fused_cpu.backward`; contiguous x, targets and out."""
    built = library()
    assert built is not None
    _call(built.focal_backward, x, targets, weight, gamma, out, None, grad.float().contiguous())


def _call(
    function: ctypes._CFuncPtr,  # type: ignore[name-defined]
    x: Tensor,
    targets: Tensor,
    weight: Tensor,
    gamma: float,
    out: Tensor | None,
    partial: Tensor | None,
    grad: Tensor | None,
) -> None:
    rows, columns = x.shape
    if x.numel() == 0:
        return
    weight = weight.float().view(2, -1).expand(2, columns).contiguous()
    targets = targets.contiguous() if targets.dim() == 1 else targets.float().contiguous()
    tensors = (x, targets, weight[0], weight[1], grad, out, partial)
    job = _Job(
        *(None if t is None else t.data_ptr() for t in tensors),
        rows,
        columns,
        gamma,
        x.dtype == torch.bfloat16,
        targets.dim() == 2,
        grad is not None and grad.dim() > 0,
    )
    function(ctypes.byref(job), torch.get_num_threads())


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled source, or None where it cannot be had."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None or os.name != "posix":
        return None
    try:
        path = Path(user_cache_dir("focal_tutorial")) / f"focal_{_key(compiler)}.so"
        if not path.exists():
            _build(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def _key(compiler: str) -> str:
    """What the library depends on: source, flags, compiler, processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=20).stdout
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), "") + platform.machine()
    return hashlib.sha256("\n".join((SOURCE, *FLAGS, version.decode(), processor)).encode()).hexdigest()[:16]


def _build(compiler: str, path: Path) -> None:
    """Compile to a temporary name and rename, so that two processes cannot disturb each other."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source, library = Path(folder, "focal.cpp"), Path(folder, "focal.so")
        source.write_text(SOURCE)
        native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
        command = [compiler, *FLAGS, native, str(source), "-o", str(library)]
        subprocess.run(command, capture_output=True, check=True, timeout=120)
        os.replace(library, path)
