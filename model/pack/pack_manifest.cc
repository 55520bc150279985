#include "model/pack/pack_manifest.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr char kFormat[] = "caravan pack";
constexpr int64_t kVersion = 2;  // 1 had no hashes of experts
constexpr size_t kHashDigits = 32;
// Keeps every product of sizes in range; no file and no tensor comes near it.
constexpr int64_t kMaxBytes = int64_t{1} << 50;
constexpr int64_t kMaxDim = int64_t{1} << 24;
// So that a small manifest cannot ask for much memory. DeepSeek-V3 has 46,000 tensors.
constexpr int64_t kMaxTensors = 1 << 20;
constexpr size_t kMaxNameBytes = 256;

constexpr std::pair<MatrixLayout, const char*> kLayouts[] = {{MatrixLayout::kRowMajor, "row_major"},
                                                             {MatrixLayout::kTiled16, "tiled16"}};

const char* LayoutName(MatrixLayout layout) {
  return absl::c_find_if(kLayouts, [layout](const auto& entry) { return entry.first == layout; })
      ->second;
}

json ToJson(const PackedTensor& tensor) {
  return {{"name", tensor.name},
          {"dtype", std::string(DTypeName(tensor.info.dtype))},
          {"layout", LayoutName(tensor.info.layout)},
          {"shape", tensor.info.shape},
          {"offset", tensor.offset}};
}

json ToJson(const std::vector<PackedTensor>& tensors) {
  json all = json::array();
  for (const PackedTensor& tensor : tensors) all.push_back(ToJson(tensor));
  return all;
}

/// Errors as ParsePackManifest's.
class Parser {
 public:
  explicit Parser(absl::string_view origin) : origin_(origin) {}

  absl::StatusOr<PackedFile> ParseFile(const json& value) const {
    CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(value, origin_));
    PackedFile file;
    CARAVAN_ASSIGN_OR_RETURN(file.name, FileName(fields));
    CARAVAN_ASSIGN_OR_RETURN(file.bytes, fields.Int("bytes", 0, kMaxBytes));
    CARAVAN_ASSIGN_OR_RETURN(file.hash, Hash(fields));
    CARAVAN_ASSIGN_OR_RETURN(file.tensors, ParseTensors(fields));
    int64_t end = 0;
    CARAVAN_RETURN_IF_ERROR(CheckPlaces(file.tensors, file.bytes, file.name, end));
    if (fields.Has("experts")) {
      CARAVAN_ASSIGN_OR_RETURN(file.experts, ParseExperts(value["experts"], file, end));
    }
    return file;
  }

  absl::StatusOr<PackedText> ParseText(const json& value) const {
    CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(value, origin_));
    PackedText text;
    CARAVAN_ASSIGN_OR_RETURN(text.name, FileName(fields));
    CARAVAN_ASSIGN_OR_RETURN(text.hash, Hash(fields));
    return text;
  }

 private:
  static absl::StatusOr<std::string> FileName(const JsonFields& fields) {
    CARAVAN_ASSIGN_OR_RETURN(std::string name, fields.String("name"));
    if (name.empty() || name[0] == '.' ||
        name.find_first_of(std::string("/\0", 2)) != std::string::npos) {
      return fields.Error("name", absl::StrCat("is \"", name, "\", not a plain file name"));
    }
    return name;
  }

  static absl::StatusOr<std::string> Hash(const JsonFields& fields) {
    CARAVAN_ASSIGN_OR_RETURN(std::string hash, fields.String("xxh3"));
    if (!IsHash(hash)) {
      return fields.Error("xxh3", absl::StrCat("must be ", kHashDigits, " hexadecimal digits"));
    }
    return hash;
  }

  static bool IsHash(const std::string& text) {
    return text.size() == kHashDigits &&
           absl::c_all_of(text, [](char c) { return absl::ascii_isxdigit(c); });
  }

  absl::StatusOr<std::vector<PackedTensor>> ParseTensors(const JsonFields& fields) const {
    CARAVAN_ASSIGN_OR_RETURN(const json* const values, fields.Array("tensors"));
    std::vector<PackedTensor> tensors;
    for (const json& value : *values) {
      CARAVAN_ASSIGN_OR_RETURN(PackedTensor tensor, ParseTensor(value));
      tensors.push_back(std::move(tensor));
    }
    return tensors;
  }

  static absl::StatusOr<std::string> Name(const JsonFields& fields, absl::string_view field) {
    CARAVAN_ASSIGN_OR_RETURN(std::string name, fields.String(field));
    if (name.empty() || name.size() > kMaxNameBytes) {
      return fields.Error(field, absl::StrCat("must have 1 to ", kMaxNameBytes, " bytes"));
    }
    return name;
  }

  absl::StatusOr<PackedTensor> ParseTensor(const json& value) const {
    CARAVAN_ASSIGN_OR_RETURN(const JsonFields anonymous, JsonFields::Of(value, origin_));
    PackedTensor tensor;
    CARAVAN_ASSIGN_OR_RETURN(tensor.name, Name(anonymous, "name"));
    CARAVAN_ASSIGN_OR_RETURN(
        const JsonFields fields,
        JsonFields::Of(value, absl::StrCat(origin_, ": tensor ", tensor.name)));
    CARAVAN_ASSIGN_OR_RETURN(const std::string dtype_name, fields.String("dtype"));
    const std::optional<DType> dtype = ParseDType(dtype_name);
    if (!dtype.has_value()) {
      return fields.Error("dtype", absl::StrCat("is \"", dtype_name, "\", which is not supported"));
    }
    tensor.info.dtype = *dtype;
    CARAVAN_ASSIGN_OR_RETURN(const std::string layout_name, fields.String("layout"));
    const auto* const layout =
        absl::c_find_if(kLayouts, [&](const auto& entry) { return entry.second == layout_name; });
    if (layout == std::end(kLayouts)) {
      return fields.Error("layout",
                          absl::StrCat("is \"", layout_name, "\", which is not supported"));
    }
    tensor.info.layout = layout->first;
    CARAVAN_ASSIGN_OR_RETURN(const json* const shape, fields.Array("shape"));
    for (const json& dim : *shape) {
      if (!dim.is_number_integer() || dim < 1 || dim > kMaxDim) {
        return fields.Error("shape", absl::StrCat("must hold sizes from 1 to ", kMaxDim));
      }
      tensor.info.shape.push_back(dim.get<int64_t>());
    }
    const size_t rank = tensor.info.shape.size();
    if (rank < 1 || rank > 2 || (rank == 1 && tensor.info.layout != MatrixLayout::kRowMajor)) {
      return fields.Error("shape", "must be [rows, cols], or [width] in layout row_major");
    }
    if (tensor.info.shape.back() % BlockOf(*dtype).values != 0) {
      return fields.Error("shape", absl::StrCat("must end with a multiple of ",
                                                BlockOf(*dtype).values, ", for ", dtype_name));
    }
    CARAVAN_ASSIGN_OR_RETURN(tensor.offset, fields.Int("offset", 0, kMaxBytes));
    return tensor;
  }

  /// `end`: where the last tensor ends.
  absl::Status CheckPlaces(const std::vector<PackedTensor>& tensors, int64_t bytes,
                           const std::string& where, int64_t& end) const {
    std::vector<const PackedTensor*> by_offset;
    for (const PackedTensor& tensor : tensors) by_offset.push_back(&tensor);
    absl::c_stable_sort(by_offset, [](const PackedTensor* a, const PackedTensor* b) {
      return a->offset < b->offset;
    });
    for (const PackedTensor* tensor : by_offset) {
      const auto wrong = [&](absl::string_view what) {
        return absl::InvalidArgumentError(
            absl::StrCat(origin_, ": tensor ", tensor->name, " of ", where, ": ", what));
      };
      if (tensor->offset % kTensorAlignment != 0) {
        return wrong(absl::StrCat("its offset is no multiple of ", kTensorAlignment));
      }
      if (tensor->offset < end) return wrong("lies over another");
      end = tensor->offset + tensor->info.num_bytes();
      if (end > bytes) return wrong("runs past the end");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<PackedExperts> ParseExperts(const json& value, const PackedFile& file,
                                             int64_t begin) const {
    CARAVAN_ASSIGN_OR_RETURN(
        const JsonFields fields,
        JsonFields::Of(value, absl::StrCat(origin_, ": experts of ", file.name)));
    PackedExperts experts;
    CARAVAN_ASSIGN_OR_RETURN(experts.prefix, Name(fields, "prefix"));
    CARAVAN_ASSIGN_OR_RETURN(experts.count, fields.Int("count", 1, kMaxTensors));
    CARAVAN_ASSIGN_OR_RETURN(experts.offset, fields.Int("offset", begin, file.bytes));
    CARAVAN_ASSIGN_OR_RETURN(experts.stride, fields.Int("stride", 1, file.bytes));
    for (const auto& [name, number] :
         {std::pair{"offset", experts.offset}, std::pair{"stride", experts.stride}}) {
      if (number % kExpertAlignment != 0) {
        return fields.Error(name, absl::StrCat("is no multiple of ", kExpertAlignment));
      }
    }
    if (experts.count > (file.bytes - experts.offset) / experts.stride) {
      return fields.Error("count", "is more than the file has room for");
    }
    CARAVAN_ASSIGN_OR_RETURN(experts.tensors, ParseTensors(fields));
    int64_t end = 0;
    CARAVAN_RETURN_IF_ERROR(CheckPlaces(experts.tensors, experts.stride,
                                        absl::StrCat("an expert of ", file.name), end));
    CARAVAN_ASSIGN_OR_RETURN(const json* const hashes, fields.Array("xxh3"));
    for (const json& hash : *hashes) {
      if (hash.is_string() && IsHash(hash.get<std::string>())) experts.hashes.push_back(hash);
    }
    if (static_cast<int64_t>(experts.hashes.size()) != experts.count ||
        hashes->size() != experts.hashes.size()) {
      return fields.Error(
          "xxh3", absl::StrCat("must hold ", kHashDigits, " hexadecimal digits for each expert"));
    }
    return experts;
  }

  const std::string origin_;
};

}  // namespace

std::string PackManifestToJson(const PackManifest& manifest) {
  json files = json::array();
  for (const PackedFile& file : manifest.files) {
    json& out = files.emplace_back(json{{"name", file.name},
                                        {"bytes", file.bytes},
                                        {"xxh3", file.hash},
                                        {"tensors", ToJson(file.tensors)}});
    if (!file.experts.has_value()) continue;
    out["experts"] = {{"prefix", file.experts->prefix}, {"count", file.experts->count},
                      {"offset", file.experts->offset}, {"stride", file.experts->stride},
                      {"xxh3", file.experts->hashes},   {"tensors", ToJson(file.experts->tensors)}};
  }
  json value = {{"format", kFormat}, {"version", kVersion}, {"files", std::move(files)}};
  for (const PackedText& text : manifest.texts) {
    value["texts"].push_back({{"name", text.name}, {"xxh3", text.hash}});
  }
  if (manifest.origin.has_value()) {
    value["origin"] = {{"path", manifest.origin->path},
                       {"fingerprint", manifest.origin->fingerprint},
                       {"options", manifest.origin->options}};
  }
  // A path need not be UTF-8.
  return value.dump(1, ' ', /*ensure_ascii=*/false, json::error_handler_t::replace) + "\n";
}

absl::StatusOr<PackManifest> ParsePackManifest(absl::string_view text, absl::string_view origin) {
  CARAVAN_ASSIGN_OR_RETURN(const json value, ParseJson(text, origin));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(value, origin));
  CARAVAN_ASSIGN_OR_RETURN(const std::string format, fields.String("format"));
  if (format != kFormat) return fields.Error("format", absl::StrCat("is not \"", kFormat, "\""));
  CARAVAN_ASSIGN_OR_RETURN(const int64_t version,
                           fields.Int("version", 1, std::numeric_limits<int64_t>::max()));
  if (version != kVersion) {
    return fields.Error("version",
                        absl::StrCat("is ", version, "; this Caravan reads version ", kVersion,
                                     version > kVersion ? ", so a newer Caravan is needed"
                                                        : ", so pack the model again"));
  }
  CARAVAN_ASSIGN_OR_RETURN(const json* const files, fields.Array("files"));
  const Parser parser(origin);
  PackManifest manifest;
  if (fields.Has("origin")) {
    CARAVAN_ASSIGN_OR_RETURN(const JsonFields made_of, fields.Object("origin"));
    manifest.origin.emplace();
    CARAVAN_ASSIGN_OR_RETURN(manifest.origin->path, made_of.String("path"));
    CARAVAN_ASSIGN_OR_RETURN(manifest.origin->fingerprint, made_of.String("fingerprint"));
    CARAVAN_ASSIGN_OR_RETURN(manifest.origin->options, made_of.String("options"));
  }
  if (fields.Has("texts")) {
    CARAVAN_ASSIGN_OR_RETURN(const json* const texts, fields.Array("texts"));
    for (const json& each : *texts) {
      CARAVAN_ASSIGN_OR_RETURN(PackedText text, parser.ParseText(each));
      manifest.texts.push_back(std::move(text));
    }
  }
  int64_t num_tensors = 0;
  for (const json& each : *files) {
    CARAVAN_ASSIGN_OR_RETURN(PackedFile file, parser.ParseFile(each));
    num_tensors += static_cast<int64_t>(file.tensors.size());
    if (file.experts.has_value()) {
      num_tensors += file.experts->count * static_cast<int64_t>(file.experts->tensors.size());
    }
    if (num_tensors > kMaxTensors) {
      return fields.Error("files", absl::StrCat("have more than ", kMaxTensors, " tensors"));
    }
    manifest.files.push_back(std::move(file));
  }
  return manifest;
}

std::vector<PackedTensor> TensorsOfExpert(const PackedExperts& experts, int64_t expert) {
  std::vector<PackedTensor> all;
  for (const PackedTensor& tensor : experts.tensors) {
    all.push_back({absl::StrCat(experts.prefix, expert, ".", tensor.name), tensor.info,
                   experts.offset + expert * experts.stride + tensor.offset});
  }
  return all;
}

std::vector<PackedTensor> AllTensors(const PackedFile& file) {
  std::vector<PackedTensor> all = file.tensors;
  if (!file.experts.has_value()) return all;
  for (int64_t e = 0; e < file.experts->count; ++e) {
    absl::c_move(TensorsOfExpert(*file.experts, e), std::back_inserter(all));
  }
  return all;
}

}  // namespace caravan
