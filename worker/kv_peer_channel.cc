#include "worker/kv_peer_channel.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <stop_token>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "caravan/v1/kv_blocks.grpc.pb.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"
#include "worker/kv_wire.h"

namespace caravan {
namespace {

class KvPeerChannel : public KvPeer {
 public:
  explicit KvPeerChannel(const KvPeerOptions& options)
      : options_(options),
        stub_(v1::KvBlocks::NewStub(MakeGrpcChannel(options.peer, options.security))) {}
  ~KvPeerChannel() override { Cancel(); }

  const std::string& name() const override { return options_.peer.name; }
  uint64_t incarnation() const override { return options_.peer.incarnation; }

  absl::StatusOr<std::vector<ListedKvPart>> List(const KvFormat& format, const LayerRange& layers,
                                                 absl::Duration timeout) override {
    Call call(*this, timeout);
    v1::ListKvBlocksRequest request;
    SetUp(format, request);
    *request.mutable_layers() = ToProto(layers);
    const auto reader = stub_->ListKvBlocks(&call.context, request);
    std::vector<ListedKvPart> parts;
    v1::ListKvBlocksResponse piece;
    absl::Status wrong;
    while (wrong.ok() && reader->Read(&piece)) {
      for (const v1::ListedKvBlock& each : piece.blocks()) {
        const absl::StatusOr<KvBlockPart> part = PartFromProto(each.part());
        if (!part.ok() || !layers.Contains(part->layers) || parts.size() >= kMostArchivedNames) {
          wrong = absl::DataLossError("its list has what no archive has");
          break;
        }
        const auto most = static_cast<uint64_t>(absl::ToInt64Milliseconds(absl::Hours(1 << 20)));
        parts.push_back({*part, absl::Milliseconds(std::min(each.unused_ms(), most))});
      }
    }
    CARAVAN_RETURN_IF_ERROR(Finish(*reader, call, wrong));
    return parts;
  }

  absl::Status Get(const KvFormat& format, absl::Span<const KvBlockPart> wanted,
                   absl::Duration timeout, Take take) override {
    Call call(*this, timeout);
    v1::GetKvBlocksRequest request;
    SetUp(format, request);
    for (const KvBlockPart& part : wanted) *request.add_parts() = ToProto(part);
    const auto reader = stub_->GetKvBlocks(&call.context, request);
    v1::GetKvBlocksResponse response;
    absl::Status wrong;
    auto next = wanted.begin();
    while (wrong.ok() && reader->Read(&response)) {
      const absl::StatusOr<KvBlockPart> part = PartFromProto(response.block().part());
      if (part.ok()) next = std::find(next, wanted.end(), *part);
      if (!part.ok() || next == wanted.end()) {
        wrong = absl::DataLossError("it sends what was not asked for");
        break;
      }
      ++next;
      const auto layers = CheckLayers(format, response.block());
      wrong = layers.ok() ? take(*part, *layers) : absl::DataLossError(layers.status().message());
    }
    return Finish(*reader, call, wrong);
  }

  absl::StatusOr<std::vector<KvBlockName>> Offer(const KvFormat& format, const LayerRange& layers,
                                                 absl::Span<const KvBlockName> names,
                                                 absl::Duration timeout) override {
    Call call(*this, timeout);
    v1::OfferKvBlocksRequest request;
    SetUp(format, request);
    *request.mutable_layers() = ToProto(layers);
    request.set_names(JoinNames(names));
    v1::OfferKvBlocksResponse response;
    CARAVAN_RETURN_IF_ERROR(
        FromPeer(FromGrpcStatus(stub_->OfferKvBlocks(&call.context, request, &response))));
    absl::StatusOr<std::vector<KvBlockName>> lacking = SplitNames(response.lacking());
    if (!lacking.ok()) return FromPeer(absl::DataLossError(lacking.status().message()));
    return lacking;
  }

  absl::Status Put(const KvFormat& format, const KvBlockPart& part,
                   absl::Span<const std::byte> layers, absl::Duration timeout) override {
    CARAVAN_RETURN_IF_ERROR(CheckPartBytes(format, part.layers));
    Call call(*this, timeout);
    v1::PutKvBlockRequest request;
    SetUp(format, request);
    *request.mutable_block() = ToProto(format, part, layers);
    v1::PutKvBlockResponse response;
    return FromPeer(FromGrpcStatus(stub_->PutKvBlock(&call.context, request, &response)));
  }

  void Cancel() override { stop_.request_stop(); }

 private:
  /// One call's context, which Cancel ends.
  struct Call {
    Call(KvPeerChannel& peer, absl::Duration timeout)
        : cancel(peer.stop_.get_token(), [this] { context.TryCancel(); }) {
      context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    }
    grpc::ClientContext context;
    const std::stop_callback<std::function<void()>> cancel;
  };

  template <typename Request>
  void SetUp(const KvFormat& format, Request& request) const {
    request.set_incarnation(options_.peer.incarnation);
    request.set_format(format.ToString());
  }

  absl::Status FromPeer(const absl::Status& status) const {
    return Annotate(status, absl::StrCat("the KV archive of ", options_.peer.name));
  }

  /// Ends a stream that is over, or is to be because something was wrong with it.
  template <typename Reader>
  absl::Status Finish(Reader& reader, Call& call, const absl::Status& wrong) const {
    if (!wrong.ok()) call.context.TryCancel();
    const absl::Status finished = FromGrpcStatus(reader.Finish());
    return FromPeer(wrong.ok() ? finished : wrong);
  }

  const KvPeerOptions options_;
  std::stop_source stop_;
  const std::unique_ptr<v1::KvBlocks::Stub> stub_;
};

}  // namespace

std::unique_ptr<KvPeer> MakeKvPeerChannel(const KvPeerOptions& options) {
  return std::make_unique<KvPeerChannel>(options);
}

}  // namespace caravan
