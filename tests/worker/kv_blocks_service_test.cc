// One worker's archive asked by another over a real connection.

#include "worker/kv_blocks_service.h"

#include <grpcpp/grpcpp.h>

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/named_thread.h"
#include "caravan/v1/kv_blocks.grpc.pb.h"
#include "cluster/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/serving.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/kv_testing.h"
#include "worker/kv_archive.h"
#include "worker/kv_peer_channel.h"
#include "worker/kv_wire.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr uint64_t kIncarnation = 7;
constexpr absl::Duration kLong = absl::Minutes(2);  // what ends before does so of itself

std::unique_ptr<KvPeer> Connect(const Serving& serving, uint64_t incarnation = kIncarnation) {
  KvPeerOptions options;
  options.peer.address = serving.address();
  options.peer.incarnation = incarnation;
  options.peer.name = "worker 2 (box-b)";
  return MakeKvPeerChannel(options);
}

class KvBlocksServiceTest : public ::testing::Test {
 protected:
  /// A request to put layers 4 and 5 of block 1.
  static v1::PutKvBlockRequest PutRequest() {
    v1::PutKvBlockRequest request;
    request.set_incarnation(kIncarnation);
    request.set_format(kSmallKv.ToString());
    *request.mutable_block() = ToProto(kSmallKv, {KvName(1), {4, 2}}, KvLayers(1, {4, 2}));
    return request;
  }
  absl::Status Put(const v1::PutKvBlockRequest& request) {
    grpc::ClientContext context;
    v1::PutKvBlockResponse response;
    return FromGrpcStatus(stub_->PutKvBlock(&context, request, &response));
  }
  void ExpectRefused(const std::function<void(v1::PutKvBlockRequest&)>& spoil,
                     absl::StatusCode code, const std::string& why) {
    v1::PutKvBlockRequest request = PutRequest();
    spoil(request);
    const absl::Status status = Put(request);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
    EXPECT_THAT(FilesIn(dir_.path()), IsEmpty());
  }

  const TempDir dir_;
  const std::shared_ptr<KvBlockStore> store_ = MustOpenKvStore(dir_.File("kv"), 4 << 10);
  KvBlocksService service_{kIncarnation, store_};
  const Serving serving_{&service_};
  const std::unique_ptr<KvPeer> peer_ = Connect(serving_);
  const std::unique_ptr<v1::KvBlocks::Stub> stub_ = v1::KvBlocks::NewStub(serving_.channel());
};

TEST_F(KvBlocksServiceTest, WhatIsPutCanBeListedAndHad) {
  EXPECT_TRUE(peer_->Put(kSmallKv, {KvName(1), {4, 3}}, KvLayers(1, {4, 3}), kLong).ok());
  EXPECT_TRUE(peer_->Put(kSmallKv, {KvName(2), {4, 2}}, KvLayers(2, {4, 2}), kLong).ok());
  EXPECT_TRUE(ReadKv(*store_, 1, {4, 3}).ok());
  const auto lacking = peer_->Offer(kSmallKv, {5, 2}, {KvName(2), KvName(1), KvName(3)}, kLong);
  ASSERT_TRUE(lacking.ok()) << lacking.status();
  EXPECT_THAT(*lacking, ElementsAre(KvName(2), KvName(3)));
  const auto listed = peer_->List(kSmallKv, {5, 1}, kLong);
  ASSERT_TRUE(listed.ok()) << listed.status();
  ASSERT_THAT(*listed, SizeIs(2));
  EXPECT_EQ((*listed)[0].part, (KvBlockPart{KvName(2), {5, 1}}));
  EXPECT_EQ((*listed)[1].part, (KvBlockPart{KvName(1), {5, 1}})) << "offered last";
  EXPECT_GE((*listed)[0].unused, (*listed)[1].unused);

  std::vector<KvBlockPart> got;
  const absl::Status status =
      peer_->Get(kSmallKv, {{KvName(2), {4, 2}}, {KvName(3), {4, 2}}, {KvName(1), {5, 2}}}, kLong,
                 [&](const KvBlockPart& part, absl::Span<const std::byte> layers) {
                   got.push_back(part);
                   const int block = part.name == KvName(1) ? 1 : 2;
                   EXPECT_EQ(std::vector<std::byte>(layers.begin(), layers.end()),
                             KvLayers(block, part.layers));
                   return absl::OkStatus();
                 });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(got, ElementsAre(KvBlockPart{KvName(2), {4, 2}}, KvBlockPart{KvName(1), {5, 2}}));
}

TEST_F(KvBlocksServiceTest, WhatCannotBeIsNotPut) {
  using Request = v1::PutKvBlockRequest;
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectRefused([](Request& put) { put.set_incarnation(8); }, absl::StatusCode::kAborted,
                "restarted");
  for (const char* format : {"", "F32-3x9x", "../F32-3x8", "F32-3x8/../../etc", "Q4_K-3x8"}) {
    ExpectRefused([&](Request& put) { put.set_format(format); }, kInvalid, "format");
  }
  for (const std::string& name : {std::string(), std::string(15, 'a'), std::string(17, 'a'),
                                  std::string("../../../../../../etc/passwd")}) {
    ExpectRefused([&](Request& put) { put.mutable_block()->mutable_part()->set_name(name); },
                  kInvalid, "name");
  }
  const auto layers = [](Request& put) {
    return put.mutable_block()->mutable_part()->mutable_layers();
  };
  ExpectRefused([&](Request& put) { layers(put)->set_num_layers(0); }, kInvalid, "layers");
  ExpectRefused([&](Request& put) { layers(put)->set_num_layers(1); }, kInvalid, "layers");
  ExpectRefused([&](Request& put) { layers(put)->set_num_layers(UINT32_MAX); }, kInvalid, "layers");
  ExpectRefused([&](Request& put) { layers(put)->set_first_layer(UINT32_MAX); }, kInvalid,
                "layers");
  // Of a format whose layers would be too large together, whatever comes with it.
  ExpectRefused([&](Request& put) { put.set_format("F32-65536x1048576"); }, kInvalid, "the most");
  ExpectRefused([](Request& put) { put.mutable_block()->mutable_layers()->pop_back(); }, kInvalid,
                "191 bytes");
  ExpectRefused([](Request& put) { put.mutable_block()->add_hashes(1); }, kInvalid, "3 hashes");
  ExpectRefused([](Request& put) { put.mutable_block()->mutable_layers()->back() ^= 1; },
                absl::StatusCode::kDataLoss, "layer 5 of KV block");
  ExpectRefused(
      [](Request& put) {
        *put.mutable_block() = ToProto(kSmallKv, {KvName(1), {0, 50}}, KvLayers(1, {0, 50}));
      },
      kInvalid, "budget");
  EXPECT_TRUE(Put(PutRequest()).ok());
  EXPECT_TRUE(ReadKv(*store_, 1, {4, 2}).ok());
}

TEST_F(KvBlocksServiceTest, OtherRequestsAreCheckedToo) {
  v1::OfferKvBlocksRequest offer;
  offer.set_incarnation(kIncarnation);
  offer.set_format(kSmallKv.ToString());
  offer.mutable_layers()->set_num_layers(1);
  for (const size_t bytes : {size_t{17}, (kMostKvParts + 1) * 16}) {
    offer.set_names(std::string(bytes, 'a'));
    grpc::ClientContext context;
    v1::OfferKvBlocksResponse response;
    EXPECT_EQ(FromGrpcStatus(stub_->OfferKvBlocks(&context, offer, &response)).code(),
              absl::StatusCode::kInvalidArgument);
  }
  v1::GetKvBlocksRequest get;
  get.set_incarnation(kIncarnation);
  get.set_format(kSmallKv.ToString());
  const auto try_get = [&] {
    grpc::ClientContext context;
    const auto reader = stub_->GetKvBlocks(&context, get);
    v1::GetKvBlocksResponse response;
    while (reader->Read(&response)) {
    }
    return FromGrpcStatus(reader->Finish()).code();
  };
  *get.add_parts() = ToProto(KvBlockPart{KvName(1), {0, 9}});
  EXPECT_EQ(try_get(), absl::StatusCode::kOk);
  get.mutable_parts(0)->set_name("../x");
  EXPECT_EQ(try_get(), absl::StatusCode::kInvalidArgument);
  get.mutable_parts(0)->set_name(std::string(16, 'a'));
  for (size_t i = 0; i < kMostKvParts; ++i) *get.add_parts() = get.parts(0);
  EXPECT_EQ(try_get(), absl::StatusCode::kInvalidArgument);
  const auto stranger = Connect(serving_, kIncarnation + 1);
  EXPECT_EQ(stranger->List(kSmallKv, {0, 9}, kLong).status().code(), absl::StatusCode::kAborted);
}

TEST_F(KvBlocksServiceTest, ACancelledPeerIsAskedNothingAnyMore) {
  peer_->Cancel();
  EXPECT_EQ(peer_->List(kSmallKv, {0, 9}, kLong).status().code(), absl::StatusCode::kCancelled);
}

/// Does what the test says.
class FakeKvBlocks final : public v1::KvBlocks::Service {
 public:
  using Get = std::function<grpc::Status(const v1::GetKvBlocksRequest&,
                                         grpc::ServerWriter<v1::GetKvBlocksResponse>&)>;
  explicit FakeKvBlocks(Get get) : get_(std::move(get)) {}

  grpc::Status ListKvBlocks(grpc::ServerContext*, const v1::ListKvBlocksRequest* request,
                            grpc::ServerWriter<v1::ListKvBlocksResponse>* writer) override {
    v1::ListKvBlocksResponse response;
    for (const int i : {1, 2, 3}) {
      KvBlockPart part = {KvName(i), *LayersFromProto(request->layers())};
      *response.add_blocks()->mutable_part() = ToProto(part);
    }
    writer->Write(response);
    return grpc::Status::OK;
  }
  grpc::Status GetKvBlocks(grpc::ServerContext*, const v1::GetKvBlocksRequest* request,
                           grpc::ServerWriter<v1::GetKvBlocksResponse>* writer) override {
    return get_(*request, *writer);
  }

 private:
  const Get get_;
};

v1::GetKvBlocksResponse BlockOf(int i, const LayerRange& layers) {
  v1::GetKvBlocksResponse response;
  *response.mutable_block() = ToProto(kSmallKv, {KvName(i), layers}, KvLayers(i, layers));
  return response;
}

TEST(KvPeerChannelTest, WhatAPeerSendsIsChecked) {
  const std::vector<std::function<void(v1::GetKvBlocksResponse&)>> spoils = {
      [](auto& sent) { sent.mutable_block()->mutable_layers()->front() ^= 1; },
      [](auto& sent) { sent.mutable_block()->mutable_layers()->pop_back(); },
      [](auto& sent) {
        sent = BlockOf(9, {4, 2});
      },  // nobody asked for that
      [](auto& sent) {
        sent = BlockOf(1, {4, 1});
      },
  };
  for (const auto& spoil : spoils) {
    FakeKvBlocks service([&](const auto&, auto& writer) {
      v1::GetKvBlocksResponse response = BlockOf(1, {4, 2});
      spoil(response);
      writer.Write(response);
      return grpc::Status::OK;
    });
    const Serving serving(&service);
    const absl::Status status =
        Connect(serving)->Get(kSmallKv, {{KvName(1), {4, 2}}}, kLong,
                              [](const KvBlockPart&, absl::Span<const std::byte>) {
                                ADD_FAILURE() << "taken";
                                return absl::OkStatus();
                              });
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("worker 2 (box-b)"));
  }
}

TEST(KvPeerChannelTest, AFetchEndsWhenItsPeerDiesMidwayOrTheStageIsStopped) {
  for (const bool dies : {true, false}) {
    const TempDir dir;
    std::promise<void> sent;
    std::promise<void> fetch_is_over;
    FakeKvBlocks service([&](const auto&, auto& writer) {
      writer.Write(BlockOf(1, {4, 2}));
      sent.set_value();
      if (dies) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "it died");
      fetch_is_over.get_future().wait();  // it hangs
      return grpc::Status::OK;
    });
    const Serving serving(&service);
    KvArchive::Place place;
    place.store = MustOpenKvStore(dir.File("kv"));
    place.peers = {Connect(serving)};
    const auto archive = *KvArchive::Open({place, kSmallKv, {4, 2}});
    ASSERT_THAT(archive->Names(9), SizeIs(3));
    std::optional<NamedThread> stopper;
    if (!dies) {
      stopper.emplace("stopper", [&] {
        sent.get_future().wait();
        archive->StopFetching();
      });
    }
    archive->Fetch({KvName(1), KvName(2), KvName(3)});
    fetch_is_over.set_value();
    stopper.reset();
    const auto ignore = [](int, absl::Span<const std::byte>) { return absl::OkStatus(); };
    if (dies) {
      EXPECT_TRUE(archive->Restore(KvName(1), ignore).ok());
    }
    EXPECT_EQ(archive->Restore(KvName(2), ignore).code(), absl::StatusCode::kNotFound);
  }
}

}  // namespace
}  // namespace caravan
