#include "model/gguf/gguf_file.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/int_math.h"
#include "base/status_macros.h"
#include "model/utf8_stream.h"

namespace caravan {
namespace {

constexpr absl::string_view kMagic = "GGUF";
constexpr uint32_t kMinVersion = 2;  // 1 had 32-bit counts and was out of use within weeks
constexpr uint32_t kMaxVersion = 3;
constexpr int64_t kDefaultAlignment = 32;
constexpr int64_t kMaxAlignment = 65536;
constexpr size_t kMaxNameBytes = 64;  // the format's own bounds
constexpr uint32_t kMaxDimensions = 4;

/// The format's numbers of tensor types.
struct TypeRow {
  uint32_t code;
  absl::string_view name;
  std::optional<DType> dtype;                  // nullopt: Caravan does not run it
  const GgufForeignBlocks* foreign = nullptr;  // or as these say
};
constexpr TypeRow kTypes[] = {
    {0, "F32", DType::kF32},
    {1, "F16", DType::kF16},
    {2, "Q4_0", DType::kQ4_0},
    {3, "Q4_1", std::nullopt, &kGgufQ4_1},
    {6, "Q5_0", std::nullopt, &kGgufQ5_0},
    {7, "Q5_1", std::nullopt, &kGgufQ5_1},
    {8, "Q8_0", DType::kQ8_0},
    {9, "Q8_1", std::nullopt},
    {10, "Q2_K", DType::kQ2_K},
    {11, "Q3_K", DType::kQ3_K},
    {12, "Q4_K", DType::kQ4_K},
    {13, "Q5_K", DType::kQ5_K},
    {14, "Q6_K", DType::kQ6_K},
    {15, "Q8_K", std::nullopt},
    {16, "IQ2_XXS", std::nullopt},
    {17, "IQ2_XS", std::nullopt},
    {18, "IQ3_XXS", std::nullopt},
    {19, "IQ1_S", std::nullopt},
    {20, "IQ4_NL", std::nullopt, &kGgufIq4Nl},
    {21, "IQ3_S", std::nullopt},
    {22, "IQ2_S", std::nullopt},
    {23, "IQ4_XS", std::nullopt},
    {24, "I8", std::nullopt},
    {25, "I16", std::nullopt},
    {26, "I32", std::nullopt},
    {27, "I64", std::nullopt},
    {28, "F64", std::nullopt},
    {29, "IQ1_M", std::nullopt},
    {30, "BF16", DType::kBF16},
    {34, "TQ1_0", std::nullopt},
    {35, "TQ2_0", std::nullopt},
    {39, "MXFP4", std::nullopt},
};

absl::Status Malformed(absl::string_view origin, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(origin, ": ", what));
}

struct Header {
  uint64_t num_tensors = 0;
  uint64_t num_pairs = 0;
};

absl::StatusOr<Header> TakeHeader(GgufCursor& cursor, absl::string_view origin) {
  absl::Span<const std::byte> magic;
  if (!cursor.TakeBytes(kMagic.size(), magic) ||
      absl::string_view(reinterpret_cast<const char*>(magic.data()), magic.size()) != kMagic) {
    return Malformed(origin, "is not a GGUF file: it does not begin with \"GGUF\"");
  }
  uint32_t version = 0;
  Header header;
  if (!cursor.Take(version)) return Malformed(origin, "truncated: its version is missing");
  if (version < kMinVersion || version > kMaxVersion) {
    // A small number whose bytes stand the other way round.
    if (version >= 1u << 24 && (version & 0xffffffu) == 0) {
      return Malformed(origin, "is big-endian GGUF; Caravan reads only little-endian");
    }
    return Malformed(origin, absl::StrCat("is GGUF of version ", version, "; Caravan reads only ",
                                          kMinVersion, " and ", kMaxVersion));
  }
  if (!cursor.Take(header.num_tensors) || !cursor.Take(header.num_pairs)) {
    return Malformed(origin, "truncated: its counts of tensors and metadata are missing");
  }
  return header;
}

struct Placed {
  std::string name;
  TensorInfo info;
  const GgufForeignBlocks* foreign = nullptr;
  uint64_t begin = 0;  // from the data's start
  int64_t bytes = 0;   // in the file
};

absl::StatusOr<const TypeRow*> ParseType(uint32_t code, absl::string_view origin) {
  for (const TypeRow& row : kTypes) {
    if (row.code != code) continue;
    if (row.dtype.has_value() || row.foreign != nullptr) return &row;
    return Malformed(origin, absl::StrCat("has type ", row.name, ", which is not supported"));
  }
  return Malformed(origin, absl::StrCat("has the unknown type ", code));
}

/// `limit`: more bytes than any tensor has.
absl::StatusOr<Placed> TakeTensor(GgufCursor& cursor, absl::string_view path, uint64_t index,
                                  uint64_t count, int64_t limit) {
  const std::string place = absl::StrCat(path, ": tensor ", index + 1, " of ", count);
  absl::string_view name;
  if (!cursor.TakeString(name)) return Malformed(place, "is truncated within its name");
  if (name.empty() || name.size() > kMaxNameBytes || FindInvalidUtf8(name).has_value()) {
    return Malformed(
        place, absl::StrCat("has a name that is not UTF-8 of 1 to ", kMaxNameBytes, " bytes"));
  }
  Placed tensor;
  tensor.name = std::string(name);
  const std::string origin = absl::StrCat(path, ": tensor ", name);
  uint32_t rank = 0;
  if (!cursor.Take(rank)) return Malformed(origin, "is truncated within its description");
  if (rank == 0 || rank > kMaxDimensions) {
    return Malformed(origin,
                     absl::StrCat("has ", rank, " dimensions; 1 to ", kMaxDimensions, " are read"));
  }
  std::vector<uint64_t> dims(rank);  // fastest first
  uint32_t type = 0;
  bool is_whole = true;
  for (uint64_t& dim : dims) is_whole = is_whole && cursor.Take(dim);
  if (!is_whole || !cursor.Take(type) || !cursor.Take(tensor.begin)) {
    return Malformed(origin, "is truncated within its description");
  }
  CARAVAN_ASSIGN_OR_RETURN(const TypeRow* const row, ParseType(type, origin));
  tensor.foreign = row->foreign;
  tensor.info.dtype = row->foreign != nullptr ? row->foreign->as : *row->dtype;
  const DTypeBlock block = row->foreign != nullptr
                               ? DTypeBlock{kForeignBlockValues, row->foreign->bytes}
                               : BlockOf(*row->dtype);
  const uint64_t max_elements = static_cast<uint64_t>(limit / block.bytes * block.values);
  uint64_t num_elements = 1;
  for (const uint64_t dim : dims) {
    if (dim == 0) return Malformed(origin, "has a dimension of 0");
    if (dim > max_elements / num_elements) {
      return Malformed(origin, "has more elements than the file holds");
    }
    num_elements *= dim;
  }
  if (dims[0] % static_cast<uint64_t>(block.values) != 0) {
    return Malformed(origin, absl::StrCat("has rows of ", dims[0], " values, which are no whole ",
                                          row->name, " blocks of ", block.values));
  }
  tensor.bytes = static_cast<int64_t>(num_elements) / block.values * block.bytes;
  tensor.info.shape.assign(dims.rbegin(), dims.rend());
  return tensor;
}

/// Checks that the tensors lie apart within `data_bytes`. Sorts them by place.
absl::Status CheckPlaces(std::vector<Placed>& tensors, absl::string_view path, uint64_t alignment,
                         uint64_t data_bytes) {
  std::sort(tensors.begin(), tensors.end(),
            [](const Placed& a, const Placed& b) { return a.begin < b.begin; });
  const Placed* previous = nullptr;
  uint64_t end = 0;  // of the previous one
  for (const Placed& tensor : tensors) {
    const std::string origin = absl::StrCat(path, ": tensor ", tensor.name);
    if (tensor.begin % alignment != 0) {
      return Malformed(origin, absl::StrCat("begins at byte ", tensor.begin,
                                            ", which is no multiple of the alignment ", alignment));
    }
    if (previous != nullptr && tensor.begin < end) {
      return Malformed(origin,
                       absl::StrCat("begins at byte ", tensor.begin, " and overlaps tensor ",
                                    previous->name, ", which ends at ", end));
    }
    const uint64_t size = static_cast<uint64_t>(tensor.bytes);
    if (tensor.begin > data_bytes || size > data_bytes - tensor.begin) {
      return Malformed(origin, absl::StrCat("begins at byte ", tensor.begin, " and has ", size,
                                            " bytes, past the file's ", data_bytes,
                                            " bytes of data; the file may be truncated"));
    }
    end = tensor.begin + size;
    previous = &tensor;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  const uint64_t file_bytes = file->bytes().size();
  GgufCursor cursor(file->bytes());
  CARAVAN_ASSIGN_OR_RETURN(const Header header, TakeHeader(cursor, path));
  CARAVAN_ASSIGN_OR_RETURN(GgufMetadata metadata,
                           GgufMetadata::Parse(cursor, header.num_pairs, path));
  CARAVAN_ASSIGN_OR_RETURN(const int64_t alignment,
                           metadata.Int("general.alignment", 8, kMaxAlignment, kDefaultAlignment));
  if (alignment % 8 != 0) return metadata.Error("general.alignment", "must be a multiple of 8");

  std::vector<Placed> tensors;  // Grows with what the file holds, not with what it says.
  for (uint64_t i = 0; i < header.num_tensors; ++i) {
    CARAVAN_ASSIGN_OR_RETURN(Placed tensor, TakeTensor(cursor, path, i, header.num_tensors,
                                                       static_cast<int64_t>(file_bytes)));
    tensors.push_back(std::move(tensor));
  }
  // A file of metadata alone may end before the padding does.
  const uint64_t unit = static_cast<uint64_t>(alignment);
  const uint64_t data_begin = std::min(RoundUp(uint64_t{cursor.offset()}, unit), file_bytes);
  CARAVAN_RETURN_IF_ERROR(CheckPlaces(tensors, path, unit, file_bytes - data_begin));

  auto opened = std::unique_ptr<GgufFile>(new GgufFile(std::move(file), std::move(metadata)));
  for (Placed& tensor : tensors) {
    const std::string origin = absl::StrCat(path, ": tensor ", tensor.name);
    if (tensor.foreign != nullptr) opened->foreign_[tensor.name] = tensor.foreign;
    if (!opened->Add(std::move(tensor.name), std::move(tensor.info),
                     static_cast<int64_t>(data_begin + tensor.begin), tensor.bytes)) {
      return Malformed(origin, "is repeated");
    }
  }
  opened->file().Release(0, static_cast<int64_t>(data_begin));
  return opened;
}

const GgufForeignBlocks* GgufFile::ForeignBlocksOf(absl::string_view name) const {
  const auto it = foreign_.find(name);
  return it == foreign_.end() ? nullptr : it->second;
}

absl::Status GgufFile::ReadPart(absl::string_view name, int64_t offset,
                                absl::Span<std::byte> out) const {
  const GgufForeignBlocks* const blocks = ForeignBlocksOf(name);
  if (blocks == nullptr) return MappedTensors::ReadPart(name, offset, out);
  constexpr int64_t kBlocksAtATime = 4096;
  const int64_t out_bytes = DTypeBytes(blocks->as, kForeignBlockValues);
  std::vector<std::byte> stored;
  std::vector<std::byte> converted;
  while (!out.empty()) {
    const int64_t first = offset / out_bytes;
    const int64_t skipped = offset - first * out_bytes;
    const int64_t wanted = skipped + static_cast<int64_t>(out.size());
    const int64_t count = std::min(kBlocksAtATime, CeilDiv(wanted, out_bytes));
    stored.resize(static_cast<size_t>(count * blocks->bytes));
    converted.resize(static_cast<size_t>(count * out_bytes));
    CARAVAN_RETURN_IF_ERROR(
        MappedTensors::ReadPart(name, first * blocks->bytes, absl::MakeSpan(stored)));
    for (int64_t i = 0; i < count; ++i) {
      blocks->convert(stored.data() + i * blocks->bytes, converted.data() + i * out_bytes);
    }
    const size_t size = std::min(out.size(), converted.size() - static_cast<size_t>(skipped));
    std::memcpy(out.data(), converted.data() + skipped, size);
    out.remove_prefix(size);
    offset += static_cast<int64_t>(size);
  }
  return absl::OkStatus();
}

void GgufFile::Prefetch(absl::string_view name, int64_t offset, int64_t size) const {
  const GgufForeignBlocks* const blocks = ForeignBlocksOf(name);
  if (blocks == nullptr) return MappedTensors::Prefetch(name, offset, size);
  const int64_t out_bytes = DTypeBytes(blocks->as, kForeignBlockValues);
  MappedTensors::Prefetch(name, offset / out_bytes * blocks->bytes,
                          CeilDiv(size, out_bytes) * blocks->bytes);
}

}  // namespace caravan
