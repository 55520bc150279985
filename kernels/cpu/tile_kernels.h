#ifndef CARAVAN_KERNELS_CPU_TILE_KERNELS_H_
#define CARAVAN_KERNELS_CPU_TILE_KERNELS_H_

// The loops behind TileOps, written once over a class `Isa` that wraps one instruction set:
//
//   kRows, kChains        activation rows at a time; sums in flight that hide the latency of a fma
//   Bytes                 64 bytes: four values of each of 16 rows
//   Floats, Ints          16 values, one a row
//   LoadBytes, StoreBytes, Or
//   Move<from, to, width>(bytes)    bits [from, from + width) of each byte to [to, to + width)
//   LoadHalves, LoadBFloats, LoadF8E4M3, LoadUnsigned, LoadSigned(pointer)
//                         16 binary16, bfloat16, E4M3, uint8 or int8 as Floats
//   LoadFloats, StoreFloats, Broadcast, Add, Mul, ToFloats
//   Fma, FloatFma         a * b + c; only FloatFma may round twice
//   Codes<Format>         the unpacked codes of a panel, for many rows:
//                         Unpack(part, line) sets those of 32 columns,
//                         Part(part) gives them to Dots
//   Dots<Format, lines, rows>(line, ...)    the exact integer dot products of one sub-block, whose
//                         codes are line(i): of Codes, or Bytes straight from a block
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

// How far ahead of its use a line of weights is asked for: the time of a read from a busy memory
// (about 200 ns) at 40 GB/s.
inline constexpr int kTilePrefetch = 8192;

// --- block formats -------------------------------------------------------------------------------

/// The scales of 256 columns: [sub-block][row].
struct alignas(64) TileScales {
  static constexpr int kColumns = 256;

  float scales[kColumns / 16][16];
  float mins[kColumns / 16][16];
};

/// The codes of 256 columns as bytes: 4 KiB, so that all stays in the first-level cache.
template <class Isa>
struct alignas(64) ByteCodes {
  uint8_t bytes[TileScales::kColumns / 4][kTileLine];  // line i: columns 4 i .. 4 i + 3

  template <class LoadLine>
  void Unpack(int64_t part, const LoadLine& line) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) Isa::StoreBytes(bytes[8 * part + i], line(i));
  }
  auto Part(int64_t part) const {
    return [lines = bytes + 8 * part](int i) { return Isa::LoadBytes(lines[i]); };
  }
};

/// One sum for each of T rows.
template <class Isa, int T>
struct TileSums {
  const ActivationBlock* rows[T];  // the next block of each
  typename Isa::Floats values[T];

  void Load(const ActivationBlock* const* x, int64_t first_block, const float* sums,
            int64_t stride) {
    for (int t = 0; t < T; ++t) {
      rows[t] = x[t] + first_block;
      values[t] = Isa::LoadFloats(sums + t * stride);
    }
  }
  void Store(float* sums, int64_t stride) const {
    for (int t = 0; t < T; ++t) Isa::StoreFloats(sums + t * stride, values[t]);
  }
};

/// Adds the products of the 32 columns whose codes are line(i), i < 8. scales, mins: of their first
/// sub-block.
template <class Isa, class Format, class LoadLine, int T>
inline void AddActivationBlock(const LoadLine& line, const float (*scales)[16],
                               const float (*mins)[16], TileSums<Isa, T>& sums) {
  constexpr int kSubBlocks = kActivationBlock / Format::kSubValues;
  constexpr int kLines = Format::kSubValues / 4;
  for (int s = 0; s < kSubBlocks; ++s) {
    typename Isa::Ints dots[T];
    Isa::template Dots<Format, kLines, T>(line, sums.rows, s, dots);
    const typename Isa::Floats scale = Isa::LoadFloats(scales[s]);
    for (int t = 0; t < T; ++t) {
      sums.values[t] =
          Isa::Fma(Isa::ToFloats(dots[t]), Isa::Mul(scale, Isa::Broadcast(sums.rows[t]->scale)),
                   sums.values[t]);
    }
    if constexpr (Format::kHasMins) {
      const typename Isa::Floats min = Isa::LoadFloats(mins[s]);
      for (int t = 0; t < T; ++t) {
        const ActivationBlock& x = *sums.rows[t];
        const float weight = kSubBlocks == 1 ? x.minus_scaled_sum : x.minus_scaled_half_sums[s];
        sums.values[t] = Isa::Fma(min, Isa::Broadcast(weight), sums.values[t]);
      }
    }
  }
  for (int t = 0; t < T; ++t) ++sums.rows[t];
}

/// Asks for what lies kTilePrefetch after a block. For one block at a time, so that the memory is
/// busy while products are taken.
template <class Format>
inline void PrefetchAfter(const uint8_t* block) {
  for (int i = 0; i < Format::kTileBytes; i += kTileLine) {
    __builtin_prefetch(block + kTilePrefetch + i);
  }
}

/// Part kPart of a block, straight from its bits.
template <class Isa, class Format, int kPart>
inline auto BlockPart(const uint8_t* block) {
  return [block](int i) { return Format::template Line<Isa, kPart>(block, i); };
}

/// AddActivationBlock for part kPart of a block and those after it, straight from the block.
/// scales, mins: of part 0.
template <class Isa, class Format, int kPart = 0, int T>
inline void AddBlock(const uint8_t* block, const float (*scales)[16], const float (*mins)[16],
                     TileSums<Isa, T>& sums) {
  constexpr int kSub = kPart * kActivationBlock / Format::kSubValues;
  AddActivationBlock<Isa, Format>(BlockPart<Isa, Format, kPart>(block), scales + kSub, mins + kSub,
                                  sums);
  if constexpr ((kPart + 1) * kActivationBlock < Format::kValues) {
    AddBlock<Isa, Format, kPart + 1>(block, scales, mins, sums);
  }
}

/// Calls add(sums) for rows of x from block `first_block` on, any number of them: T at a time, then
/// the rest by halves of that.
template <class Isa, int T, class AddRows>
inline void ForRows(const ActivationBlock* const* x, int64_t num_x, int64_t first_block,
                    float* sums, int64_t stride, const AddRows& add) {
  int64_t t = 0;
  for (; t + T <= num_x; t += T) {
    TileSums<Isa, T> rows;
    rows.Load(x + t, first_block, sums + t * stride, stride);
    add(rows);
    rows.Store(sums + t * stride, stride);
  }
  if constexpr (T > 1) {
    ForRows<Isa, T / 2>(x + t, num_x - t, first_block, sums + t * stride, stride, add);
  }
}

template <class Isa, class Format, int kPart = 0>
inline void UnpackBlock(const uint8_t* block, int64_t first_part,
                        typename Isa::template Codes<Format>& codes) {
  codes.Unpack(first_part + kPart, BlockPart<Isa, Format, kPart>(block));
  if constexpr ((kPart + 1) * kActivationBlock < Format::kValues) {
    UnpackBlock<Isa, Format, kPart + 1>(block, first_part, codes);
  }
}

/// TileOps::MultiplyBlocks, a panel at a time. For a few rows the codes go from the block's bits
/// straight into the products; for more they are unpacked once for all.
template <class Isa, class Format>
void MultiplyBlocks(const std::byte* blocks, int64_t num_blocks, const ActivationBlock* const* x,
                    int64_t num_x, float* sums, int64_t sums_stride) {
  constexpr int64_t kPanelBlocks = TileScales::kColumns / Format::kValues;
  constexpr int64_t kParts = Format::kValues / kActivationBlock;
  constexpr int64_t kPartSubBlocks = kActivationBlock / Format::kSubValues;
  constexpr int64_t kSubBlocks = kParts * kPartSubBlocks;
  constexpr int64_t kDirectRows = 4;
  TileScales panel;
  typename Isa::template Codes<Format> codes;
  for (int64_t first = 0; first < num_blocks; first += kPanelBlocks) {
    const int64_t count = num_blocks - first < kPanelBlocks ? num_blocks - first : kPanelBlocks;
    const auto block = [&](int64_t b) {
      return reinterpret_cast<const uint8_t*>(blocks) + (first + b) * Format::kTileBytes;
    };
    for (int64_t b = 0; b < count; ++b) {
      Format::template Scales<Isa>(block(b), panel.scales + b * kSubBlocks,
                                   panel.mins + b * kSubBlocks);
    }
    if (num_x <= kDirectRows) {
      ForRows<Isa, kDirectRows>(x, num_x, first * kParts, sums, sums_stride, [&](auto& rows) {
        for (int64_t b = 0; b < count; ++b) {
          PrefetchAfter<Format>(block(b));
          AddBlock<Isa, Format>(block(b), panel.scales + b * kSubBlocks,
                                panel.mins + b * kSubBlocks, rows);
        }
      });
      continue;
    }
    for (int64_t b = 0; b < count; ++b) {
      PrefetchAfter<Format>(block(b));
      UnpackBlock<Isa, Format>(block(b), b * kParts, codes);
    }
    ForRows<Isa, Isa::kRows>(x, num_x, first * kParts, sums, sums_stride, [&](auto& rows) {
      for (int64_t p = 0; p < count * kParts; ++p) {
        AddActivationBlock<Isa, Format>(codes.Part(p), panel.scales + p * kPartSubBlocks,
                                        panel.mins + p * kPartSubBlocks, rows);
      }
    });
  }
}

// --- floats --------------------------------------------------------------------------------------

/// Adds the products of kChunks chunks of n columns each for T rows, column by column in all of
/// them at once.
template <class Isa, class Format, int T, int kChunks>
inline void MultiplyChunks(const uint8_t* w, int64_t n, typename Isa::Floats scale,
                           const float* const* x, int64_t column, float* sums,
                           int64_t sums_stride) {
  constexpr int64_t kColumnBytes = 16 * Format::kBytes;
  typename Isa::Floats chunk[kChunks][T];
  for (auto& row : chunk) {
    for (auto& sum : row) sum = Isa::Broadcast(0);
  }
  const float* rows[T];
  for (int t = 0; t < T; ++t) rows[t] = x[t] + column;
  for (int64_t i = 0; i < n; ++i) {
    for (int c = 0; c < kChunks; ++c) {
      const uint8_t* bytes = w + (c * kFloatChunk + i) * kColumnBytes;
      // The chunks beside this one lie between here and what comes next.
      if (T < Isa::kRows) __builtin_prefetch(bytes + kFloatChunk * 4 * kColumnBytes);
      const typename Isa::Floats weights = Format::template Load<Isa>(bytes, scale);
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

template <class Isa, class Format, int T>
inline void MultiplyColumns(const uint8_t* w, int64_t n, typename Isa::Floats scale,
                            const float* const* x, int64_t num_x, int64_t column, float* sums,
                            int64_t sums_stride) {
  constexpr int kChunks = Isa::kChains / T < 4 ? (Isa::kChains / T > 1 ? Isa::kChains / T : 1) : 4;
  constexpr int64_t kColumnBytes = 16 * Format::kBytes;
  int64_t t = 0;
  for (; t + T <= num_x; t += T) {
    float* sum = sums + t * sums_stride;
    int64_t i = 0;
    for (; i + kChunks * kFloatChunk <= n; i += kChunks * kFloatChunk) {
      MultiplyChunks<Isa, Format, T, kChunks>(w + i * kColumnBytes, kFloatChunk, scale, x + t,
                                              column + i, sum, sums_stride);
    }
    for (; i < n; i += kFloatChunk) {
      const int64_t count = n - i < kFloatChunk ? n - i : kFloatChunk;
      MultiplyChunks<Isa, Format, T, 1>(w + i * kColumnBytes, count, scale, x + t, column + i, sum,
                                        sums_stride);
    }
  }
  if constexpr (T > 1) {
    MultiplyColumns<Isa, Format, T / 2>(w, n, scale, x + t, num_x - t, column,
                                        sums + t * sums_stride, sums_stride);
  }
}

/// TileOps::MultiplyValues. Many rows share the decoding of a panel.
template <class Isa, class Format>
void MultiplyValues(const std::byte* w, int64_t n, float scale, const float* const* x,
                    int64_t num_x, float* sums, int64_t sums_stride) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(w);
  const typename Isa::Floats scales = Isa::Broadcast(scale);
  constexpr int64_t kColumns = 4 * kFloatChunk;
  for (int64_t column = 0; column < n;
       column += kColumns, bytes += kColumns * 16 * Format::kBytes) {
    const int64_t count = n - column < kColumns ? n - column : kColumns;
    if (Format::kBytes == 4 || num_x <= Isa::kRows) {
      MultiplyColumns<Isa, Format, Isa::kRows>(bytes, count, scales, x, num_x, column, sums,
                                               sums_stride);
      continue;
    }
    alignas(64) float decoded[kColumns * 16];
    for (int64_t i = 0; i < count; ++i) {
      Isa::StoreFloats(decoded + 16 * i,
                       Format::template Load<Isa>(bytes + i * 16 * Format::kBytes, scales));
    }
    MultiplyColumns<Isa, TiledF32, Isa::kRows>(reinterpret_cast<const uint8_t*>(decoded), count,
                                               scales, x, num_x, column, sums, sums_stride);
  }
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
      .multiply_f32 = MultiplyValues<Isa, TiledF32>,
      .multiply_f16 = MultiplyValues<Isa, TiledF16>,
      .multiply_bf16 = MultiplyValues<Isa, TiledBF16>,
      .multiply_f8e4m3 = MultiplyValues<Isa, TiledF8E4M3>,
  };
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_TILE_KERNELS_H_
