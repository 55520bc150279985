#include "tests/support/gguf_writer.h"

#include "absl/strings/str_cat.h"

namespace caravan {
namespace {

constexpr uint32_t kStringType = 8;
constexpr uint32_t kArrayType = 9;

void Pad(uint64_t alignment, std::string& bytes) {
  while (bytes.size() % alignment != 0) bytes.push_back('\0');
}

}  // namespace

void AppendGgufString(absl::string_view text, std::string& bytes) {
  AppendLittleEndian(static_cast<uint64_t>(text.size()), bytes);
  absl::StrAppend(&bytes, text);
}

void GgufWriter::AppendKey(absl::string_view key, uint32_t type) {
  AppendGgufString(key, pairs_);
  AppendLittleEndian(type, pairs_);
  ++num_pairs_;
}

void GgufWriter::AppendArray(absl::string_view key, uint32_t element_type, uint64_t count) {
  AppendKey(key, kArrayType);
  AppendLittleEndian(element_type, pairs_);
  AppendLittleEndian(count, pairs_);
}

void GgufWriter::SetString(absl::string_view key, absl::string_view value) {
  AppendKey(key, kStringType);
  AppendGgufString(value, pairs_);
}

void GgufWriter::SetStrings(absl::string_view key, const std::vector<std::string>& values) {
  AppendArray(key, kStringType, values.size());
  for (const std::string& value : values) AppendGgufString(value, pairs_);
}

void GgufWriter::SetRaw(absl::string_view key, uint32_t type, absl::string_view bytes) {
  AppendKey(key, type);
  absl::StrAppend(&pairs_, bytes);
}

void GgufWriter::AddTensor(absl::string_view name, const std::vector<int64_t>& shape, uint32_t type,
                           absl::string_view bytes) {
  Pad(alignment, data_);
  AddTensorAt(name, shape, type, data_.size(), bytes);
}

void GgufWriter::AddTensorAt(absl::string_view name, const std::vector<int64_t>& shape,
                             uint32_t type, uint64_t offset, absl::string_view bytes) {
  AppendGgufString(name, infos_);
  AppendLittleEndian(static_cast<uint32_t>(shape.size()), infos_);
  for (auto dim = shape.rbegin(); dim != shape.rend(); ++dim) {
    AppendLittleEndian(static_cast<uint64_t>(*dim), infos_);
  }
  AppendLittleEndian(type, infos_);
  AppendLittleEndian(offset, infos_);
  absl::StrAppend(&data_, bytes);
  ++num_tensors_;
}

std::string GgufWriter::Bytes() const {
  std::string bytes = "GGUF";
  AppendLittleEndian(version, bytes);
  AppendLittleEndian(num_tensors_, bytes);
  AppendLittleEndian(num_pairs_, bytes);
  absl::StrAppend(&bytes, pairs_, infos_);
  Pad(alignment, bytes);
  absl::StrAppend(&bytes, data_);
  return bytes;
}

}  // namespace caravan
