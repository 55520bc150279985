#ifndef CARAVAN_KERNELS_CPU_TILE_FORMATS_H_
#define CARAVAN_KERNELS_CPU_TILE_FORMATS_H_

// How a block of each format is unpacked from a tile (kernels/tiled/tile_layout.cc gives the
// fields' order, kernels/quant/blocks.h the formats) into codes of a byte and float scales.
//
// Included only by the files that define one instruction set's tables, each of which passes a class
// `Isa` of its own unnamed namespace: so everything here is compiled once for each set, and the
// linker cannot share it between them. What Isa offers is listed in tile_kernels.h.

#include <cstdint>

namespace caravan {

inline constexpr int kTileLine = 64;  // bytes: four values of each of 16 rows, one byte each

/// Unpacked codes and scales of 256 columns of a tile: 4 KiB + 2 KiB, so it stays in the
/// first-level cache.
struct alignas(64) TilePanel {
  static constexpr int kColumns = 256;

  uint8_t codes[kColumns / 4][kTileLine];  // line i: columns 4 i .. 4 i + 3
  float scales[kColumns / 16][16];         // [sub-block, row]
  float mins[kColumns / 16][16];
};

/// Lines [0, kLines) of `from`, bits [kFrom, kFrom + kWidth) of each byte, as whole bytes.
template <class Isa, int kLines, int kFrom, int kWidth>
inline void UnpackBits(const uint8_t* from, uint8_t (*codes)[kTileLine]) {
  for (int i = 0; i < kLines; ++i) {
    Isa::StoreBytes(codes[i],
                    Isa::template Move<kFrom, 0, kWidth>(Isa::LoadBytes(from + i * kTileLine)));
  }
}

/// As UnpackBits for eight lines, with bits [kHighFrom, kHighFrom + kHighWidth) of the same place
/// in `high` above them.
template <class Isa, int kFrom, int kWidth, int kHighFrom, int kHighWidth>
inline void UnpackSplitBits(const uint8_t* low, const uint8_t* high, uint8_t (*codes)[kTileLine]) {
  for (int i = 0; i < 8; ++i) {
    Isa::StoreBytes(
        codes[i], Isa::Or(Isa::template Move<kFrom, 0, kWidth>(Isa::LoadBytes(low + i * kTileLine)),
                          Isa::template Move<kHighFrom, kWidth, kHighWidth>(
                              Isa::LoadBytes(high + i * kTileLine))));
  }
}

// Each format says: values and bytes of a block (bytes of all 16 rows), values of a sub-block,
// whether it has minima, its codes' greatest value, the power of two that is stored on top of a
// code (kOffset, 0: none) and where codes that need no unpacking lie (kCodesAt, -1: they do need
// it). Unpack takes one block to the panel's lines and sub-blocks from those given on.

struct TiledQ8_0 {
  static constexpr int kValues = 32, kSubValues = 32, kTileBytes = 16 * 34;
  static constexpr bool kHasMins = false, kSigned = true;
  static constexpr int kMaxCode = 128, kOffset = 0, kCodesAt = 32;

  template <class Isa>
  static void Unpack(const uint8_t* block, uint8_t (*)[kTileLine], float (*scales)[16],
                     float (*)[16]) {
    Isa::StoreFloats(scales[0], Isa::LoadHalves(block));
  }
};

struct TiledQ4_0 {
  static constexpr int kValues = 32, kSubValues = 32, kTileBytes = 16 * 18;
  static constexpr bool kHasMins = false, kSigned = false;
  static constexpr int kMaxCode = 15, kOffset = 8, kCodesAt = -1;

  template <class Isa>
  static void Unpack(const uint8_t* block, uint8_t (*codes)[kTileLine], float (*scales)[16],
                     float (*)[16]) {
    Isa::StoreFloats(scales[0], Isa::LoadHalves(block));
    UnpackBits<Isa, 4, 0, 4>(block + 32, codes);
    UnpackBits<Isa, 4, 4, 4>(block + 32, codes + 4);
  }
};

/// The scales and minima of Q4_K and Q5_K. `fields`: d, dmin, then the 12 bytes of 16 rows each.
template <class Isa>
inline void UnpackSixBitScales(const uint8_t* fields, float (*scales)[16], float (*mins)[16]) {
  const typename Isa::Bytes first = Isa::LoadBytes(fields + 64);
  const typename Isa::Bytes second = Isa::LoadBytes(fields + 128);
  const typename Isa::Bytes third = Isa::LoadBytes(fields + 192);
  alignas(64) uint8_t integers[4][kTileLine];  // scales 0-3, 4-7, minima 0-3, 4-7 of 16 rows
  Isa::StoreBytes(integers[0], Isa::template Move<0, 0, 6>(first));
  Isa::StoreBytes(integers[1],
                  Isa::Or(Isa::template Move<0, 0, 4>(third), Isa::template Move<6, 4, 2>(first)));
  Isa::StoreBytes(integers[2], Isa::template Move<0, 0, 6>(second));
  Isa::StoreBytes(integers[3],
                  Isa::Or(Isa::template Move<4, 0, 4>(third), Isa::template Move<6, 4, 2>(second)));
  const typename Isa::Floats d = Isa::LoadHalves(fields);
  const typename Isa::Floats dmin = Isa::LoadHalves(fields + 32);
  for (int s = 0; s < 8; ++s) {
    const uint8_t* scale = integers[s / 4] + s % 4 * 16;
    Isa::StoreFloats(scales[s], Isa::Mul(d, Isa::LoadUnsigned(scale)));
    Isa::StoreFloats(mins[s], Isa::Mul(dmin, Isa::LoadUnsigned(scale + 2 * kTileLine)));
  }
}

struct TiledQ4_K {
  static constexpr int kValues = 256, kSubValues = 32, kTileBytes = 16 * 144;
  static constexpr bool kHasMins = true, kSigned = false;
  static constexpr int kMaxCode = 15, kOffset = 0, kCodesAt = -1;

  template <class Isa>
  static void Unpack(const uint8_t* block, uint8_t (*codes)[kTileLine], float (*scales)[16],
                     float (*mins)[16]) {
    UnpackSixBitScales<Isa>(block, scales, mins);
    const uint8_t* lines = block + 16 * 16;
    for (int i = 0; i < 4; ++i) {
      UnpackBits<Isa, 8, 0, 4>(lines + 8 * i * kTileLine, codes + 16 * i);
      UnpackBits<Isa, 8, 4, 4>(lines + 8 * i * kTileLine, codes + 16 * i + 8);
    }
  }
};

struct TiledQ5_K {
  static constexpr int kValues = 256, kSubValues = 32, kTileBytes = 16 * 176;
  static constexpr bool kHasMins = true, kSigned = false;
  static constexpr int kMaxCode = 31, kOffset = 0, kCodesAt = -1;

  template <class Isa>
  static void Unpack(const uint8_t* block, uint8_t (*codes)[kTileLine], float (*scales)[16],
                     float (*mins)[16]) {
    UnpackSixBitScales<Isa>(block, scales, mins);
    const uint8_t* high = block + 16 * 16;
    const uint8_t* low = block + 48 * 16;
    UnpackPair<Isa, 0>(low, high, codes);
    UnpackPair<Isa, 2>(low, high, codes);
    UnpackPair<Isa, 4>(low, high, codes);
    UnpackPair<Isa, 6>(low, high, codes);
  }

 private:
  /// Sub-blocks kSub and kSub + 1.
  template <class Isa, int kSub>
  static void UnpackPair(const uint8_t* low, const uint8_t* high, uint8_t (*codes)[kTileLine]) {
    low += kSub * 4 * kTileLine;
    UnpackSplitBits<Isa, 0, 4, kSub, 1>(low, high, codes + 8 * kSub);
    UnpackSplitBits<Isa, 4, 4, kSub + 1, 1>(low, high, codes + 8 * kSub + 8);
  }
};

struct TiledQ6_K {
  static constexpr int kValues = 256, kSubValues = 16, kTileBytes = 16 * 210;
  static constexpr bool kHasMins = false, kSigned = false;
  static constexpr int kMaxCode = 63, kOffset = 32, kCodesAt = -1;

  template <class Isa>
  static void Unpack(const uint8_t* block, uint8_t (*codes)[kTileLine], float (*scales)[16],
                     float (*)[16]) {
    const typename Isa::Floats d = Isa::LoadHalves(block);
    for (int s = 0; s < 16; ++s) {
      Isa::StoreFloats(scales[s], Isa::Mul(d, Isa::LoadSigned(block + 32 + 16 * s)));
    }
    for (int half = 0; half < 2; ++half) {
      const uint8_t* high = block + 18 * 16 + half * 8 * kTileLine;
      const uint8_t* low = block + 82 * 16 + half * 16 * kTileLine;
      uint8_t(*out)[kTileLine] = codes + 32 * half;
      UnpackSplitBits<Isa, 0, 4, 0, 2>(low, high, out);
      UnpackSplitBits<Isa, 0, 4, 2, 2>(low + 8 * kTileLine, high, out + 8);
      UnpackSplitBits<Isa, 4, 4, 4, 2>(low, high, out + 16);
      UnpackSplitBits<Isa, 4, 4, 6, 2>(low + 8 * kTileLine, high, out + 24);
    }
  }
};

struct TiledQ3_K {
  static constexpr int kValues = 256, kSubValues = 16, kTileBytes = 16 * 110;
  static constexpr bool kHasMins = false, kSigned = false;
  static constexpr int kMaxCode = 7, kOffset = 4, kCodesAt = -1;

  template <class Isa>
  static void Unpack(const uint8_t* block, uint8_t (*codes)[kTileLine], float (*scales)[16],
                     float (*)[16]) {
    const typename Isa::Bytes low0 = Isa::LoadBytes(block + 32);
    const typename Isa::Bytes low1 = Isa::LoadBytes(block + 32 + kTileLine);
    const typename Isa::Bytes high = Isa::LoadBytes(block + 32 + 2 * kTileLine);
    alignas(64) uint8_t integers[4][kTileLine];  // scales + 32: four sub-blocks of 16 rows a line
    Isa::StoreBytes(integers[0],
                    Isa::Or(Isa::template Move<0, 0, 4>(low0), Isa::template Move<0, 4, 2>(high)));
    Isa::StoreBytes(integers[1],
                    Isa::Or(Isa::template Move<0, 0, 4>(low1), Isa::template Move<2, 4, 2>(high)));
    Isa::StoreBytes(integers[2],
                    Isa::Or(Isa::template Move<4, 0, 4>(low0), Isa::template Move<4, 4, 2>(high)));
    Isa::StoreBytes(integers[3],
                    Isa::Or(Isa::template Move<4, 0, 4>(low1), Isa::template Move<6, 4, 2>(high)));
    const typename Isa::Floats d = Isa::LoadHalves(block);
    const typename Isa::Floats offset = Isa::Broadcast(-32);
    for (int s = 0; s < 16; ++s) {
      const uint8_t* scale = integers[s / 4] + s % 4 * 16;
      Isa::StoreFloats(scales[s], Isa::Mul(d, Isa::Add(Isa::LoadUnsigned(scale), offset)));
    }
    const uint8_t* top = block + 14 * 16;
    const uint8_t* low = block + 46 * 16;
    UnpackHalf<Isa, 0>(low, top, codes);
    UnpackHalf<Isa, 4>(low + 8 * kTileLine, top, codes + 32);
  }

 private:
  /// 128 values, whose third bits are kBit and on of `top`.
  template <class Isa, int kBit>
  static void UnpackHalf(const uint8_t* low, const uint8_t* top, uint8_t (*codes)[kTileLine]) {
    UnpackSplitBits<Isa, 0, 2, kBit, 1>(low, top, codes);
    UnpackSplitBits<Isa, 2, 2, kBit + 1, 1>(low, top, codes + 8);
    UnpackSplitBits<Isa, 4, 2, kBit + 2, 1>(low, top, codes + 16);
    UnpackSplitBits<Isa, 6, 2, kBit + 3, 1>(low, top, codes + 24);
  }
};

struct TiledQ2_K {
  static constexpr int kValues = 256, kSubValues = 16, kTileBytes = 16 * 84;
  static constexpr bool kHasMins = true, kSigned = false;
  static constexpr int kMaxCode = 3, kOffset = 0, kCodesAt = -1;

  template <class Isa>
  static void Unpack(const uint8_t* block, uint8_t (*codes)[kTileLine], float (*scales)[16],
                     float (*mins)[16]) {
    alignas(64) uint8_t integers[2][4][kTileLine];  // scales, then minima
    UnpackBits<Isa, 4, 0, 4>(block + 64, integers[0]);
    UnpackBits<Isa, 4, 4, 4>(block + 64, integers[1]);
    const typename Isa::Floats d = Isa::LoadHalves(block);
    const typename Isa::Floats dmin = Isa::LoadHalves(block + 32);
    for (int s = 0; s < 16; ++s) {
      Isa::StoreFloats(scales[s], Isa::Mul(d, Isa::LoadUnsigned(integers[0][s / 4] + s % 4 * 16)));
      Isa::StoreFloats(mins[s], Isa::Mul(dmin, Isa::LoadUnsigned(integers[1][s / 4] + s % 4 * 16)));
    }
    for (int half = 0; half < 2; ++half) {
      const uint8_t* lines = block + 20 * 16 + half * 8 * kTileLine;
      uint8_t(*out)[kTileLine] = codes + 32 * half;
      UnpackBits<Isa, 8, 0, 2>(lines, out);
      UnpackBits<Isa, 8, 2, 2>(lines, out + 8);
      UnpackBits<Isa, 8, 4, 2>(lines, out + 16);
      UnpackBits<Isa, 8, 6, 2>(lines, out + 24);
    }
  }
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_TILE_FORMATS_H_
