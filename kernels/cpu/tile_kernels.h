#ifndef CARAVAN_KERNELS_CPU_TILE_KERNELS_H_
#define CARAVAN_KERNELS_CPU_TILE_KERNELS_H_

// The loops behind TileOps, written once over a class `Isa` that wraps one instruction set:
//
//   kRows, kChains        activation rows at a time; sums in flight that hide the latency of a fma
//   Bytes                 64 bytes: four values of each of 16 rows
//   Floats, Ints          16 values, one a row
//   LoadBytes, StoreBytes, Or
//   Move<from, to, width>(bytes)    bits [from, from + width) of each byte to [to, to + width)
//   LoadHalves, LoadUnsigned, LoadSigned(pointer)    16 binary16, uint8 or int8 as Floats
//   LoadFloats, StoreFloats, Broadcast, Add, Mul, ToFloats
//   Fma, FloatFma         a * b + c; only FloatFma may round twice
//   Dots<Format, groups, rows>(...)    the exact integer dot products of one sub-block
//   MaxMagnitude(x)       the greatest of |x[0..32)| as bits; a NaN is above infinity
//   RoundQuotients(x, d, codes)    codes[i] = x[i] / d to the nearest integer, ties to even
//
// Included only by the files that define one instruction set's tables (see tile_formats.h).

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/activation_block.h"
#include "kernels/cpu/tile_formats.h"
#include "kernels/cpu/tile_ops.h"

namespace caravan {

// How far ahead of its use a line of weights is asked for: the time of a read from memory (about
// 100 ns) at 40 GB/s.
inline constexpr int kTilePrefetch = 4096;

// --- block formats -------------------------------------------------------------------------------

/// Adds the products of one panel of `num_blocks` activation blocks for T rows.
template <class Isa, class Format, int T>
inline void MultiplyPanel(const uint8_t* codes, const TilePanel& panel, int64_t num_blocks,
                          const ActivationBlock* const* x, int64_t first_block, float* sums,
                          int64_t sums_stride) {
  constexpr int kSubBlocks = kActivationBlock / Format::kSubValues;  // of an activation block
  constexpr int kGroups = Format::kSubValues / 4;
  constexpr int64_t kBlockStride =
      Format::kCodesAt >= 0 ? Format::kTileBytes : kActivationBlock / 4 * kTileLine;
  const ActivationBlock* rows[T];
  typename Isa::Floats sum[T];
  for (int t = 0; t < T; ++t) {
    rows[t] = x[t] + first_block;
    sum[t] = Isa::LoadFloats(sums + t * sums_stride);
  }
  for (int64_t b = 0; b < num_blocks; ++b) {
    for (int s = 0; s < kSubBlocks; ++s) {
      typename Isa::Ints dots[T];
      Isa::template Dots<Format, kGroups, T>(codes + s * kGroups * kTileLine, rows, s, dots);
      const typename Isa::Floats scale = Isa::LoadFloats(panel.scales[b * kSubBlocks + s]);
      for (int t = 0; t < T; ++t) {
        sum[t] = Isa::Fma(Isa::ToFloats(dots[t]), Isa::Mul(scale, Isa::Broadcast(rows[t]->scale)),
                          sum[t]);
      }
      if constexpr (Format::kHasMins) {
        const typename Isa::Floats min = Isa::LoadFloats(panel.mins[b * kSubBlocks + s]);
        for (int t = 0; t < T; ++t) {
          const float weight =
              kSubBlocks == 1 ? rows[t]->minus_scaled_sum : rows[t]->minus_scaled_half_sums[s];
          sum[t] = Isa::Fma(min, Isa::Broadcast(weight), sum[t]);
        }
      }
    }
    codes += kBlockStride;
    for (int t = 0; t < T; ++t) ++rows[t];
  }
  for (int t = 0; t < T; ++t) Isa::StoreFloats(sums + t * sums_stride, sum[t]);
}

/// MultiplyPanel for any number of rows: T at a time, then the rest by halves of that.
template <class Isa, class Format, int T>
inline void MultiplyPanelRows(const uint8_t* codes, const TilePanel& panel, int64_t num_blocks,
                              const ActivationBlock* const* x, int64_t num_x, int64_t first_block,
                              float* sums, int64_t sums_stride) {
  int64_t t = 0;
  for (; t + T <= num_x; t += T) {
    MultiplyPanel<Isa, Format, T>(codes, panel, num_blocks, x + t, first_block,
                                  sums + t * sums_stride, sums_stride);
  }
  if constexpr (T > 1) {
    MultiplyPanelRows<Isa, Format, T / 2>(codes, panel, num_blocks, x + t, num_x - t, first_block,
                                          sums + t * sums_stride, sums_stride);
  }
}

/// TileOps::MultiplyBlocks: a panel at a time is unpacked, once for all rows.
template <class Isa, class Format>
void MultiplyBlocks(const std::byte* blocks, int64_t num_blocks, const ActivationBlock* const* x,
                    int64_t num_x, float* sums, int64_t sums_stride) {
  constexpr int64_t kPanelBlocks = TilePanel::kColumns / Format::kValues;
  constexpr int64_t kActivationBlocks = Format::kValues / kActivationBlock;  // of a block
  constexpr int kSubBlocks = Format::kValues / Format::kSubValues;
  TilePanel panel;
  const auto* bytes = reinterpret_cast<const uint8_t*>(blocks);
  for (int64_t first = 0; first < num_blocks; first += kPanelBlocks) {
    const int64_t count = num_blocks - first < kPanelBlocks ? num_blocks - first : kPanelBlocks;
    const uint8_t* start = bytes + first * Format::kTileBytes;
    for (int64_t b = 0; b < count; ++b) {
      const uint8_t* block = start + b * Format::kTileBytes;
      for (int i = 0; i < Format::kTileBytes; i += kTileLine) {
        __builtin_prefetch(block + kTilePrefetch + i);
      }
      Format::template Unpack<Isa>(block, panel.codes + b * (Format::kValues / 4),
                                   panel.scales + b * kSubBlocks, panel.mins + b * kSubBlocks);
    }
    const uint8_t* codes = Format::kCodesAt >= 0 ? start + Format::kCodesAt : panel.codes[0];
    MultiplyPanelRows<Isa, Format, Isa::kRows>(codes, panel, count * kActivationBlocks, x, num_x,
                                               first * kActivationBlocks, sums, sums_stride);
  }
}

// --- floats --------------------------------------------------------------------------------------

/// Adds the products of kChunks chunks of n columns each for T rows, column by column in all of
/// them at once.
template <class Isa, int T, int kChunks>
inline void MultiplyChunks(const float* w, int64_t n, const float* const* x, int64_t column,
                           float* sums, int64_t sums_stride) {
  typename Isa::Floats chunk[kChunks][T];
  for (auto& row : chunk) {
    for (auto& sum : row) sum = Isa::Broadcast(0);
  }
  const float* rows[T];
  for (int t = 0; t < T; ++t) rows[t] = x[t] + column;
  for (int64_t i = 0; i < n; ++i) {
    for (int c = 0; c < kChunks; ++c) {
      const typename Isa::Floats weights = Isa::LoadFloats(w + (c * kFloatChunk + i) * 16);
      for (int t = 0; t < T; ++t) {
        chunk[c][t] =
            Isa::FloatFma(weights, Isa::Broadcast(rows[t][c * kFloatChunk + i]), chunk[c][t]);
      }
    }
  }
  for (int t = 0; t < T; ++t) {
    typename Isa::Floats sum = Isa::LoadFloats(sums + t * sums_stride);
    for (int c = 0; c < kChunks; ++c) sum = Isa::Add(sum, chunk[c][t]);
    Isa::StoreFloats(sums + t * sums_stride, sum);
  }
}

template <class Isa, int T>
inline void MultiplyFloatRows(const float* w, int64_t n, const float* const* x, int64_t num_x,
                              float* sums, int64_t sums_stride) {
  constexpr int kChunks = Isa::kChains / T < 4 ? (Isa::kChains / T > 1 ? Isa::kChains / T : 1) : 4;
  int64_t t = 0;
  for (; t + T <= num_x; t += T) {
    float* sum = sums + t * sums_stride;
    int64_t i = 0;
    for (; i + kChunks * kFloatChunk <= n; i += kChunks * kFloatChunk) {
      MultiplyChunks<Isa, T, kChunks>(w + i * 16, kFloatChunk, x + t, i, sum, sums_stride);
    }
    for (; i < n; i += kFloatChunk) {
      const int64_t count = n - i < kFloatChunk ? n - i : kFloatChunk;
      MultiplyChunks<Isa, T, 1>(w + i * 16, count, x + t, i, sum, sums_stride);
    }
  }
  if constexpr (T > 1) {
    MultiplyFloatRows<Isa, T / 2>(w, n, x + t, num_x - t, sums + t * sums_stride, sums_stride);
  }
}

template <class Isa>
void MultiplyFloats(const float* w, int64_t n, const float* const* x, int64_t num_x, float* sums,
                    int64_t sums_stride) {
  MultiplyFloatRows<Isa, Isa::kRows>(w, n, x, num_x, sums, sums_stride);
}

// --- activations ---------------------------------------------------------------------------------

/// max / 127 such that max / (max / 127) rounds to at most 127.
template <class Isa>
inline float CodeScale(float max) {
  constexpr float kSmallestNormal = 0x1p-126f;
  const float scale = max / 127;
  // A subnormal quotient may be far below the true one, by its own measure: the next one is above.
  return scale < kSmallestNormal && max > 0 ? scale + 0x1p-149f : scale;
}

template <class Isa>
void Quantize(const float* x, int64_t n, ActivationBlock* out) {
  constexpr uint32_t kInfinity = 0x7f800000;
  for (int64_t i = 0; i < n; i += kActivationBlock, ++out) {
    const uint32_t max_bits = Isa::MaxMagnitude(x + i);
    float max;
    __builtin_memcpy(&max, &max_bits, sizeof(max));
    float scale = CodeScale<Isa>(max);
    if (max_bits == 0 || max_bits >= kInfinity) {
      __builtin_memset(out->codes, 0, sizeof(out->codes));
      if (max_bits != 0) scale = __builtin_nanf("");
    } else {
      Isa::RoundQuotients(x + i, scale, out->codes);
    }
    int32_t halves[2] = {0, 0};
    for (int h = 0; h < 2; ++h) {
      for (int j = 0; j < 16; ++j) halves[h] -= out->codes[16 * h + j];
      out->minus_half_sums[h] = halves[h];
      out->minus_scaled_half_sums[h] = scale * static_cast<float>(halves[h]);
    }
    out->scale = scale;
    out->minus_sum = halves[0] + halves[1];
    out->minus_scaled_sum = scale * static_cast<float>(out->minus_sum);
  }
}

/// The table of an instruction set.
template <class Isa>
constexpr TileOps MakeTileOps(CpuIsa isa) {
  return {
      .isa = isa,
      .quantize = Quantize<Isa>,
      .multiply_q4_0 = MultiplyBlocks<Isa, TiledQ4_0>,
      .multiply_q8_0 = MultiplyBlocks<Isa, TiledQ8_0>,
      .multiply_q2_k = MultiplyBlocks<Isa, TiledQ2_K>,
      .multiply_q3_k = MultiplyBlocks<Isa, TiledQ3_K>,
      .multiply_q4_k = MultiplyBlocks<Isa, TiledQ4_K>,
      .multiply_q5_k = MultiplyBlocks<Isa, TiledQ5_K>,
      .multiply_q6_k = MultiplyBlocks<Isa, TiledQ6_K>,
      .multiply_floats = MultiplyFloats<Isa>,
  };
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_TILE_KERNELS_H_
