#include "model/safetensors.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr int64_t kLengthBytes = 8;                // of the field that says how long the header is
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own bound
constexpr size_t kMaxRank = 8;                     // twice what any checkpoint uses

absl::Status Malformed(absl::string_view origin, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(origin, ": ", what));
}

/// The JSON text, checked against the file's length.
absl::StatusOr<absl::string_view> HeaderText(const MappedFile& file) {
  const absl::Span<const std::byte> bytes = file.bytes();
  if (bytes.size() < kLengthBytes) {
    return Malformed(file.path(), "truncated: too short to hold the header's length");
  }
  uint64_t length = 0;
  for (int i = 0; i < kLengthBytes; ++i) {
    length |= std::to_integer<uint64_t>(bytes[static_cast<size_t>(i)]) << (8 * i);
  }
  if (length > kMaxHeaderBytes) {
    return Malformed(file.path(), absl::StrCat("the header's length is ", length,
                                               " bytes; at most ", kMaxHeaderBytes, " are read"));
  }
  if (length > bytes.size() - kLengthBytes) {
    return Malformed(file.path(), absl::StrCat("truncated: the header needs ", length, " of ",
                                               bytes.size() - kLengthBytes, " bytes"));
  }
  return absl::string_view(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
}

/// An integer in [0, 2^63); -1 for anything else.
int64_t NonNegative(const json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    return -1;
  }
  return value.get<int64_t>();
}

/// Errors: InvalidArgument - a dimension below 1, or more than `limit` elements.
absl::StatusOr<std::vector<int64_t>> ParseShape(const JsonFields& fields, int64_t limit) {
  CARAVAN_ASSIGN_OR_RETURN(const json* const dims, fields.Array("shape"));
  if (dims->size() > kMaxRank) {
    return fields.Error("shape", absl::StrCat("must have at most ", kMaxRank, " dimensions"));
  }
  std::vector<int64_t> shape;
  int64_t num_elements = 1;
  for (const json& dim : *dims) {
    const int64_t size = NonNegative(dim);
    if (size <= 0) return fields.Error("shape", "must be a list of positive integers");
    if (size > limit / num_elements) {
      return fields.Error("shape", "makes more elements than the file holds");
    }
    num_elements *= size;
    shape.push_back(size);
  }
  return shape;
}

struct Placed {
  TensorInfo info;
  int64_t begin = 0;  // from the data's start
};

absl::StatusOr<Placed> ParseTensor(const json& value, absl::string_view origin,
                                   int64_t data_bytes) {
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(value, origin));
  CARAVAN_ASSIGN_OR_RETURN(const std::string dtype_name, fields.String("dtype"));
  const std::optional<DType> dtype = ParseDType(dtype_name);
  if (!dtype.has_value() || BlockOf(*dtype).values != 1) {  // GGUF's formats are not safetensors'
    return fields.Error("dtype", absl::StrCat("is \"", dtype_name, "\", which is not supported"));
  }
  Placed tensor;
  tensor.info.dtype = *dtype;
  CARAVAN_ASSIGN_OR_RETURN(tensor.info.shape,
                           ParseShape(fields, data_bytes / BlockOf(*dtype).bytes));
  CARAVAN_ASSIGN_OR_RETURN(const json* const offsets, fields.Array("data_offsets"));
  const bool is_pair = offsets->size() == 2;
  const int64_t begin = is_pair ? NonNegative((*offsets)[0]) : -1;
  const int64_t end = is_pair ? NonNegative((*offsets)[1]) : -1;
  if (begin < 0 || end < begin) {
    return fields.Error("data_offsets", "must be [begin, end] with 0 <= begin <= end");
  }
  if (end > data_bytes) {
    return fields.Error("data_offsets", absl::StrCat("end at ", end, ", past the file's ",
                                                     data_bytes, " bytes of data"));
  }
  if (end - begin != tensor.info.num_bytes()) {
    return fields.Error("data_offsets",
                        absl::StrCat("span ", end - begin, " bytes, but shape and dtype make ",
                                     tensor.info.num_bytes()));
  }
  tensor.begin = begin;
  return tensor;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  CARAVAN_ASSIGN_OR_RETURN(const absl::string_view text, HeaderText(*file));
  const std::string header_origin = absl::StrCat(path, ": header");
  CARAVAN_ASSIGN_OR_RETURN(const json header, ParseJson(text, header_origin));
  if (!header.is_object()) return Malformed(header_origin, "must be a JSON object");

  const int64_t data_begin = kLengthBytes + static_cast<int64_t>(text.size());
  const int64_t data_bytes = static_cast<int64_t>(file->bytes().size()) - data_begin;
  auto opened = std::unique_ptr<SafetensorsFile>(new SafetensorsFile(std::move(file)));
  std::vector<std::pair<int64_t, std::string>> order;  // by place
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      for (const auto& [key, text] : value.items()) {
        if (text.is_string()) opened->metadata_[key] = text.get<std::string>();
      }
      continue;
    }
    CARAVAN_ASSIGN_OR_RETURN(Placed tensor,
                             ParseTensor(value, absl::StrCat(path, ": tensor ", name), data_bytes));
    order.emplace_back(tensor.begin, name);
    const int64_t num_bytes = tensor.info.num_bytes();
    opened->Add(name, std::move(tensor.info), data_begin + tensor.begin, num_bytes);
  }

  std::sort(order.begin(), order.end());
  int64_t expected = 0;
  for (const auto& [begin, name] : order) {
    if (begin != expected) {
      return Malformed(
          path, absl::StrCat("tensor ", name, " begins at byte ", begin,
                             begin < expected ? " and overlaps the tensor that ends at "
                                              : " and leaves a gap after the data that ends at ",
                             expected));
    }
    expected += opened->Find(name)->num_bytes();
  }
  if (expected != data_bytes) {
    return Malformed(path, absl::StrCat("leaves a gap: the tensors end at byte ", expected, " of ",
                                        data_bytes, " bytes of data"));
  }
  opened->file().Release(0, data_begin);
  return opened;
}

}  // namespace caravan
