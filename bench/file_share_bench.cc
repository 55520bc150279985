// What passing files costs those who serve: takes files of a pack from coordinators and workers
// over and over, and throws them away. What they serve meanwhile somebody else measures
// (docs/performance.md).

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "bench/must_be.h"
#include "caravan/v1/pipeline.grpc.pb.h"
#include "cluster/grpc_transport.h"
#include "cluster/serving_share.h"
#include "model/pack/packed_model.h"
#include "worker/files/remote_file_source.h"

namespace caravan {
namespace {

struct Flags {
  std::string pack;
  std::vector<std::string> sources;
  double seconds = 10;
  int streams = 1;  // as FetchFiles does with a source that serves
};

/// Bytes that came from one source until the time was over.
int64_t Take(RemoteFileSource& source, const PackManifest& manifest, const std::stop_token& stop) {
  std::atomic<int64_t> bytes = 0;
  const auto count = [&bytes](absl::Span<const std::byte> part) {
    bytes += static_cast<int64_t>(part.size());
    return absl::OkStatus();
  };
  while (!stop.stop_requested()) {
    for (const PackedFile& file : manifest.files) {
      const absl::Status read = ReadAll(source, file.name, 0, file.bytes, count, stop);
      if (stop.stop_requested()) break;
      if (read.ok() || absl::IsNotFound(read)) continue;
      std::fprintf(stderr, "%s: %s\n", source.name().c_str(), read.ToString().c_str());
      return bytes;
    }
  }
  return bytes;
}

/// Which life of a process is at the address, as it tells whoever opens a hop.
uint64_t IncarnationAt(const std::string& address) {
  const auto stub = v1::Pipeline::NewStub(MakeGrpcChannel(address));
  grpc::ClientContext context;
  const auto flow = stub->Flow(&context);
  v1::FlowReply reply;
  if (!flow->Read(&reply)) std::fprintf(stderr, "%s does not answer\n", address.c_str());
  context.TryCancel();
  static_cast<void>(flow->Finish());
  return reply.incarnation();
}

int Run(const Flags& flags) {
  const std::unique_ptr<PackedModel> model = MustBe(PackedModel::Open(flags.pack));
  ServingShare::Options idle;
  idle.steps_run = [] { return false; };
  ServingShare share(idle);
  std::vector<std::unique_ptr<RemoteFileSource>> sources;
  for (const std::string& address : flags.sources) {
    RemoteFileSource::Options options;
    options.peer.name = address;
    options.peer.address = address;
    options.peer.incarnation = IncarnationAt(address);
    options.fingerprint = model->fingerprint();
    options.share = &share;
    sources.push_back(std::make_unique<RemoteFileSource>(options));
  }
  std::stop_source stop;
  std::vector<std::atomic<int64_t>> bytes(sources.size());
  std::vector<std::unique_ptr<NamedThread>> threads;
  for (size_t s = 0; s < sources.size(); ++s) {
    for (int i = 0; i < flags.streams; ++i) {
      threads.push_back(std::make_unique<NamedThread>(
          "take", [&, s] { bytes[s] += Take(*sources[s], model->manifest(), stop.get_token()); }));
    }
  }
  std::this_thread::sleep_for(absl::ToChronoMilliseconds(absl::Seconds(flags.seconds)));
  stop.request_stop();
  threads.clear();
  for (size_t s = 0; s < sources.size(); ++s) {
    std::printf("%s %.3f MB/s\n", flags.sources[s].c_str(),
                static_cast<double>(bytes[s].load()) / 1e6 / flags.seconds);
  }
  return 0;
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) {
  CLI::App app("Takes a pack's files from those who serve it");
  caravan::Flags flags;
  app.add_option("--pack", flags.pack, "A copy of the packed model")->required();
  app.add_option("--source", flags.sources, "HOST:PORT of who has it")->required();
  app.add_option("--seconds", flags.seconds)->capture_default_str();
  app.add_option("--streams", flags.streams, "from each source")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return caravan::Run(flags);
}
