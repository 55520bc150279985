#include "worker/kv_wire.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace caravan {

v1::KvLayerRange ToProto(const LayerRange& layers) {
  v1::KvLayerRange proto;
  proto.set_first_layer(static_cast<uint32_t>(layers.first));
  proto.set_num_layers(static_cast<uint32_t>(layers.num));
  return proto;
}

absl::StatusOr<LayerRange> LayersFromProto(const v1::KvLayerRange& layers) {
  constexpr uint32_t kMost = kMostKvLayers;
  if (layers.num_layers() == 0 || layers.num_layers() > kMost || layers.first_layer() > kMost) {
    return absl::InvalidArgumentError(
        absl::StrCat("layers: ", layers.num_layers(), " from ", layers.first_layer(), " on"));
  }
  return LayerRange{static_cast<int>(layers.first_layer()), static_cast<int>(layers.num_layers())};
}

v1::KvBlockPart ToProto(const KvBlockPart& part) {
  v1::KvBlockPart proto;
  proto.set_name(std::string(part.name.view()));
  *proto.mutable_layers() = ToProto(part.layers);
  return proto;
}

absl::StatusOr<KvBlockPart> PartFromProto(const v1::KvBlockPart& part) {
  const std::optional<KvBlockName> name = KvBlockNameFromWire(part.name());
  if (!name.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "name: ", part.name().size(), " bytes, and a KV block's has ", KvBlockName::kBytes));
  }
  CARAVAN_ASSIGN_OR_RETURN(const LayerRange layers, LayersFromProto(part.layers()));
  return KvBlockPart{*name, layers};
}

v1::KvBlockLayers ToProto(const KvFormat& format, const KvBlockPart& part,
                          absl::Span<const std::byte> layers) {
  v1::KvBlockLayers proto;
  *proto.mutable_part() = ToProto(part);
  const auto layer_bytes = static_cast<size_t>(format.layer_bytes());
  for (size_t i = 0; i < static_cast<size_t>(part.layers.num); ++i) {
    proto.add_hashes(HashKvLayer(layers.subspan(i * layer_bytes, layer_bytes)));
  }
  proto.set_layers(layers.data(), layers.size());
  return proto;
}

absl::StatusOr<absl::Span<const std::byte>> CheckLayers(const KvFormat& format,
                                                        const v1::KvBlockLayers& block) {
  CARAVAN_ASSIGN_OR_RETURN(const KvBlockPart part, PartFromProto(block.part()));
  CARAVAN_RETURN_IF_ERROR(CheckPartBytes(format, part.layers));
  const int64_t expected = part.layers.num * format.layer_bytes();
  if (std::ssize(block.layers()) != expected || block.hashes_size() != part.layers.num) {
    return absl::InvalidArgumentError(
        absl::StrCat("layers: ", block.layers().size(), " bytes and ", block.hashes_size(),
                     " hashes of ", part.layers.num, " layers of ", format.layer_bytes()));
  }
  const absl::Span<const std::byte> layers(
      reinterpret_cast<const std::byte*>(block.layers().data()), block.layers().size());
  const auto layer_bytes = static_cast<size_t>(format.layer_bytes());
  for (int i = 0; i < part.layers.num; ++i) {
    if (HashKvLayer(layers.subspan(static_cast<size_t>(i) * layer_bytes, layer_bytes)) ==
        block.hashes(i)) {
      continue;
    }
    return absl::DataLossError(absl::StrCat("layer ", part.layers.first + i, " of KV block ",
                                            part.name.Hex(), " is not what was hashed"));
  }
  return layers;
}

absl::Status CheckPartBytes(const KvFormat& format, const LayerRange& layers) {
  if (layers.num <= kMostKvPartBytes / format.layer_bytes()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layers: ", layers.num, " of ",
                                                 format.layer_bytes(), " bytes; ", kMostKvPartBytes,
                                                 " are the most together"));
}

std::string JoinNames(absl::Span<const KvBlockName> names) {
  std::string joined;
  for (const KvBlockName& name : names) absl::StrAppend(&joined, name.view());
  return joined;
}

absl::StatusOr<std::vector<KvBlockName>> SplitNames(absl::string_view bytes) {
  if (bytes.size() % KvBlockName::kBytes != 0 ||
      bytes.size() / KvBlockName::kBytes > kMostKvParts) {
    return absl::InvalidArgumentError(absl::StrCat("names: ", bytes.size(), " bytes; at most ",
                                                   kMostKvParts, " of ", KvBlockName::kBytes));
  }
  std::vector<KvBlockName> names;
  for (; !bytes.empty(); bytes.remove_prefix(KvBlockName::kBytes)) {
    names.push_back(*KvBlockNameFromWire(bytes.substr(0, KvBlockName::kBytes)));
  }
  return names;
}

}  // namespace caravan
