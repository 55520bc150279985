#ifndef CARAVAN_MODEL_GGUF_GGUF_FOREIGN_BLOCKS_H_
#define CARAVAN_MODEL_GGUF_GGUF_FOREIGN_BLOCKS_H_

// GGUF's block formats that no kernel of ours takes, as formats that one does and that hold the
// same values. Quantizers fall back on them where a row is no whole number of blocks of 256:
// attn_k_b of DeepSeek-V3, whose rows have 128 values, is Q5_0 in what is called Q4_K_M.
//
// All are blocks of 32 values. The layouts are those of ggml (ggml-org/ggml, src/ggml-common.h); d
// and m are binary16, codes of 4 bits lie as in Q4_0Block (kernels/quant/blocks.h), and bit i of a
// word of 32 is the fifth of code i.
//   Q4_1   d, m, codes         d * code + m                  as F32
//   Q5_0   d, fifths, codes    d * (code - 16)               as Q8_0: the same d, whole codes
//   Q5_1   d, m, fifths, codes d * code + m                  as F32
//   IQ4_NL d, codes            d * one of 16 whole numbers   as Q8_0
// The sum is rounded once to f32, which is what those who define the formats compute.

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace caravan {

inline constexpr int64_t kForeignBlockValues = 32;

struct GgufForeignBlocks {
  int64_t bytes;  // of a block
  DType as;
  /// One block; `out` has room for 32 values in `as`. Neither is aligned.
  void (*convert)(const std::byte* block, std::byte* out);
};

extern const GgufForeignBlocks kGgufQ4_1;
extern const GgufForeignBlocks kGgufQ5_0;
extern const GgufForeignBlocks kGgufQ5_1;
extern const GgufForeignBlocks kGgufIq4Nl;

}  // namespace caravan

#endif  // CARAVAN_MODEL_GGUF_GGUF_FOREIGN_BLOCKS_H_
