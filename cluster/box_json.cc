#include "cluster/box_json.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "cluster/known_boxes.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr double kMostRate = 1e18;  // a second; past all that there is
constexpr int64_t kMostBytes = int64_t{1} << 50;
constexpr double kMostYuan = 1e9;
constexpr absl::string_view kIsas[] = {"avx512", "avx2", "portable"};

// What JSON has of each part, for reader and writer alike: a field's name, where it lies, the least
// and most it may be and what it is where it is missing (nothing: it may not be).
template <class V>
absl::Status Visit(Box::Cpu& cpu, V& fields) {
  CARAVAN_RETURN_IF_ERROR(fields.Integer("cores", cpu.cores, 1, 4096));
  CARAVAN_RETURN_IF_ERROR(fields.OneOf("isa", cpu.isa, kIsas));
  CARAVAN_RETURN_IF_ERROR(fields.Rate("multiply_adds_per_second", cpu.multiply_adds));
  CARAVAN_RETURN_IF_ERROR(
      fields.Rate("attention_multiply_adds_per_second", cpu.attention_multiply_adds));
  return fields.Integer("pcie_generation", cpu.pcie_generation, 0, 9, 0);
}

template <class V>
absl::Status Visit(Box::Memory& memory, V& fields) {
  CARAVAN_RETURN_IF_ERROR(fields.Integer("total_bytes", memory.total_bytes, 1, kMostBytes));
  CARAVAN_RETURN_IF_ERROR(fields.Integer("worker_bytes", memory.bytes, 0, memory.total_bytes,
                                         WorkerMemory(memory.total_bytes)));
  return fields.Rate("read_bytes_per_second", memory.read_bytes);
}

template <class V>
absl::Status Visit(Box::Disk& disk, V& fields) {
  CARAVAN_RETURN_IF_ERROR(fields.Integer("drives", disk.drives, 1, 64, 1));
  CARAVAN_RETURN_IF_ERROR(fields.Integer("bytes", disk.bytes, 0, kMostBytes));
  return fields.Rate("read_bytes_per_second", disk.read_bytes);
}

template <class V>
absl::Status Visit(Box::Card& card, V& fields) {
  CARAVAN_RETURN_IF_ERROR(fields.Integer("count", card.count, 1, 64, 1));
  CARAVAN_RETURN_IF_ERROR(fields.Integer("total_bytes", card.total_bytes, 1, kMostBytes));
  CARAVAN_RETURN_IF_ERROR(fields.Integer("worker_bytes", card.bytes, 0, card.total_bytes,
                                         WorkerVram(card.total_bytes)));
  CARAVAN_RETURN_IF_ERROR(fields.Rate("read_bytes_per_second", card.read_bytes));
  CARAVAN_RETURN_IF_ERROR(fields.Rate("multiply_adds_per_second", card.multiply_adds));
  return fields.Number("pcie_bytes_per_second", card.pcie_bytes, 0, kMostRate, 0);
}

template <class V>
absl::Status Visit(Box::Network& network, V& fields) {
  CARAVAN_RETURN_IF_ERROR(fields.Rate("bytes_per_second", network.bytes));
  return fields.Number("latency_seconds", network.latency_seconds, 0, 60);
}

/// Refuses fields that are not `known`.
absl::Status CheckNames(const json& object, absl::Span<const absl::string_view> known,
                        const JsonFields& fields) {
  for (const auto& item : object.items()) {
    if (std::find(known.begin(), known.end(), item.key()) == known.end()) {
      return fields.Error(item.key(),
                          absl::StrCat("is not known; there are ", absl::StrJoin(known, ", ")));
    }
  }
  return absl::OkStatus();
}

class Reader {
 public:
  explicit Reader(const JsonFields& fields) : fields_(fields) {}

  template <class T>
  absl::Status Integer(absl::string_view name, T& value, int64_t min, int64_t max,
                       std::optional<int64_t> fallback = std::nullopt) {
    names_.push_back(name);
    CARAVAN_ASSIGN_OR_RETURN(const int64_t read, fields_.Int(name, min, max, fallback));
    value = static_cast<T>(read);
    return absl::OkStatus();
  }
  absl::Status Number(absl::string_view name, double& value, double min, double max,
                      std::optional<double> fallback = std::nullopt) {
    names_.push_back(name);
    CARAVAN_ASSIGN_OR_RETURN(value, fields_.Number(name, min, max, fallback));
    return absl::OkStatus();
  }
  absl::Status Rate(absl::string_view name, double& value) {
    return Number(name, value, 1, kMostRate);
  }
  absl::Status OneOf(absl::string_view name, std::string& value,
                     absl::Span<const absl::string_view> values) {
    names_.push_back(name);
    CARAVAN_ASSIGN_OR_RETURN(value, fields_.String(name));
    if (std::find(values.begin(), values.end(), value) != values.end()) return absl::OkStatus();
    return fields_.Error(name, absl::StrCat("must be one of ", absl::StrJoin(values, ", ")));
  }

  const std::vector<absl::string_view>& names() const { return names_; }

 private:
  const JsonFields& fields_;
  std::vector<absl::string_view> names_;
};

class Writer {
 public:
  explicit Writer(json& object) : object_(object) {}

  template <class T>
  absl::Status Integer(absl::string_view name, T& value, int64_t /*min*/, int64_t /*max*/,
                       std::optional<int64_t> /*fallback*/ = std::nullopt) {
    return Set(name, value);
  }
  absl::Status Number(absl::string_view name, double& value, double /*min*/, double /*max*/,
                      std::optional<double> /*fallback*/ = std::nullopt) {
    return Set(name, value);
  }
  absl::Status Rate(absl::string_view name, double& value) { return Set(name, value); }
  absl::Status OneOf(absl::string_view name, std::string& value,
                     absl::Span<const absl::string_view> /*values*/) {
    return Set(name, value);
  }

 private:
  template <class T>
  absl::Status Set(absl::string_view name, const T& value) {
    object_[std::string(name)] = value;
    return absl::OkStatus();
  }

  json& object_;
};

absl::Status ReadSources(const JsonFields& fields, const json& object,
                         absl::Span<const absl::string_view> figures, Box::Part& part) {
  if (!fields.Has("sources")) return absl::OkStatus();
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields sources, fields.Object("sources"));
  CARAVAN_RETURN_IF_ERROR(CheckNames(object["sources"], figures, sources));
  for (const auto& item : object["sources"].items()) {
    CARAVAN_ASSIGN_OR_RETURN(part.sources[item.key()], sources.String(item.key()));
  }
  return absl::OkStatus();
}

/// The part that is written out as `object`.
template <class P>
absl::StatusOr<P> ReadPart(const json& object, const JsonFields& fields) {
  P part;
  Reader reader(fields);
  CARAVAN_RETURN_IF_ERROR(Visit(part, reader));
  CARAVAN_RETURN_IF_ERROR(reader.Number("price_yuan", part.price_yuan, 0, kMostYuan, 0));
  std::vector<absl::string_view> names = reader.names();
  CARAVAN_RETURN_IF_ERROR(ReadSources(fields, object, names, part));
  CARAVAN_ASSIGN_OR_RETURN(part.name, fields.String("name", ""));
  names.insert(names.end(), {"name", "sources"});
  CARAVAN_RETURN_IF_ERROR(CheckNames(object, names, fields));
  return part;
}

/// The part at `name`, whose slots are those of `cpu` where it is a known one.
template <class P>
absl::StatusOr<P> PartOf(const JsonFields& fields, const json& object, const std::string& name,
                         const Box::Cpu* cpu) {
  const auto it = object.find(name);
  if (it == object.end() || !it->is_string()) {
    CARAVAN_ASSIGN_OR_RETURN(const JsonFields part, fields.Object(name));
    return ReadPart<P>(*it, part);
  }
  absl::StatusOr<P> part = FindPart<P>(it->get<std::string>());
  if (!part.ok()) return fields.Error(name, absl::StrCat("is wrong: ", part.status().message()));
  if constexpr (std::is_same_v<P, Box::Disk> || std::is_same_v<P, Box::Card>) {
    return InSlot(*std::move(part), *cpu);
  }
  return part;
}

template <class P>
json PartToJson(P part) {
  json object = json::object();
  Writer writer(object);
  (void)Visit(part, writer);
  if (!part.name.empty()) object["name"] = part.name;
  if (part.price_yuan > 0) object["price_yuan"] = part.price_yuan;
  if (!part.sources.empty()) object["sources"] = part.sources;
  return object;
}

/// One entry of a list. Networks that are missing stay so.
absl::StatusOr<BoxCount> ReadEntry(const json& entry, const std::string& origin,
                                   const std::filesystem::path& folder) {
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(entry, origin));
  CARAVAN_RETURN_IF_ERROR(CheckNames(entry, {"box", "file", "count", "name"}, fields));
  BoxCount boxes;
  CARAVAN_ASSIGN_OR_RETURN(const int64_t count, fields.Int("count", 1, kMostBoxes, 1));
  boxes.count = static_cast<int>(count);
  if (fields.Has("box") == fields.Has("file")) {
    return fields.Error("box", "or \"file\" must be there, and not both");
  }
  if (fields.Has("file")) {
    CARAVAN_ASSIGN_OR_RETURN(const std::string file, fields.String("file"));
    const std::string path = (folder / file).string();
    CARAVAN_ASSIGN_OR_RETURN(const json text, ReadJsonFile(path));
    CARAVAN_ASSIGN_OR_RETURN(boxes.box, BoxFromJson(text, path));
  } else if (entry["box"].is_string()) {
    absl::StatusOr<Box> known = FindBox(entry["box"].get<std::string>());
    if (!known.ok()) {
      return fields.Error("box", absl::StrCat("is wrong: ", known.status().message()));
    }
    boxes.box = *std::move(known);
    boxes.box.network = {};  // one that is not said is not meant
  } else {
    CARAVAN_ASSIGN_OR_RETURN(boxes.box, BoxFromJson(entry["box"], absl::StrCat(origin, ": box")));
  }
  CARAVAN_ASSIGN_OR_RETURN(boxes.box.name, fields.String("name", boxes.box.name));
  return boxes;
}

}  // namespace

absl::StatusOr<Box> BoxFromJson(const json& object, absl::string_view origin) {
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(object, origin));
  CARAVAN_RETURN_IF_ERROR(
      CheckNames(object, {"name", "cpu", "memory", "disk", "card", "network"}, fields));
  Box box;
  CARAVAN_ASSIGN_OR_RETURN(box.name, fields.String("name"));
  CARAVAN_ASSIGN_OR_RETURN(box.cpu, PartOf<Box::Cpu>(fields, object, "cpu", nullptr));
  CARAVAN_ASSIGN_OR_RETURN(box.memory, PartOf<Box::Memory>(fields, object, "memory", nullptr));
  CARAVAN_ASSIGN_OR_RETURN(box.disk, PartOf<Box::Disk>(fields, object, "disk", &box.cpu));
  if (fields.Has("card")) {
    CARAVAN_ASSIGN_OR_RETURN(box.card, PartOf<Box::Card>(fields, object, "card", &box.cpu));
  }
  if (fields.Has("network")) {
    CARAVAN_ASSIGN_OR_RETURN(box.network, PartOf<Box::Network>(fields, object, "network", nullptr));
  }
  return box;
}

json BoxToJson(const Box& box) {
  json object = {{"name", box.name},
                 {"cpu", PartToJson(box.cpu)},
                 {"memory", PartToJson(box.memory)},
                 {"disk", PartToJson(box.disk)}};
  if (box.card.count > 0) object["card"] = PartToJson(box.card);
  if (box.network.bytes > 0) object["network"] = PartToJson(box.network);
  return object;
}

absl::StatusOr<std::vector<BoxCount>> ReadBoxes(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(const json text, ReadJsonFile(path));
  // A box alone, as `caravan probe` writes it.
  if (text.is_object() && text.contains("cpu")) {
    CARAVAN_ASSIGN_OR_RETURN(Box box, BoxFromJson(text, path));
    return std::vector<BoxCount>{{std::move(box), 1}};
  }
  Box::Network network;
  const json* entries = &text;
  if (!text.is_array()) {
    CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(text, path));
    CARAVAN_RETURN_IF_ERROR(CheckNames(text, {"boxes", "network"}, fields));
    CARAVAN_ASSIGN_OR_RETURN(entries, fields.Array("boxes"));
    if (fields.Has("network")) {
      CARAVAN_ASSIGN_OR_RETURN(network, PartOf<Box::Network>(fields, text, "network", nullptr));
    }
  }
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::vector<BoxCount> boxes;
  int count = 0;
  for (size_t i = 0; i < entries->size(); ++i) {
    CARAVAN_ASSIGN_OR_RETURN(
        BoxCount more, ReadEntry((*entries)[i], absl::StrCat(path, ": boxes[", i, "]"), folder));
    if (more.box.network.bytes == 0) more.box.network = network;
    count += more.count;
    const auto equal = std::find_if(boxes.begin(), boxes.end(),
                                    [&](const BoxCount& other) { return other.box == more.box; });
    if (equal != boxes.end()) {
      equal->count += more.count;
    } else {
      boxes.push_back(std::move(more));
    }
  }
  if (count == 0) return absl::InvalidArgumentError(absl::StrCat(path, ": there are no boxes"));
  if (count > kMostBoxes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", count, " boxes; at most ", kMostBoxes, " are planned"));
  }
  for (const BoxCount& boxes_of_a_kind : boxes) {
    if (count > 1 && boxes_of_a_kind.box.network.bytes == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": field \"network\" is missing, of the list and of box \"",
                       boxes_of_a_kind.box.name, "\""));
    }
  }
  return boxes;
}

}  // namespace caravan
