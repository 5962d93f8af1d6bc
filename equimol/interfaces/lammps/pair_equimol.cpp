// pair_style equimol: a package that `equimol export` wrote, run by LAMMPS without Python.
//
// Copyright (C) 2026 The EquiMol authors. This file alone is licensed under the GNU General Public License, version 2, because it is
// compiled against the headers of LAMMPS; see LICENSE beside it. SPDX-License-Identifier: GPL-2.0-only
//
// Every rank evaluates the energies of its own atoms from them and from all atoms within cutoff x layers, which LAMMPS keeps as ghosts;
// forces on ghosts are sent back by LAMMPS. So several ranks give the numbers of one.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "lammps.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

namespace {

constexpr int FORMAT = 1;           // of packages that this file reads
constexpr double BEYOND = 1.0e-10;  // added to lengths that are compared, relative

class PairEquiMol : public Pair {
 public:
  explicit PairEquiMol(LAMMPS *lmp) : Pair(lmp) {
    single_enable = 0;
    restartinfo = 0;
    one_coeff = 1;
    manybody_flag = 1;
    no_virial_fdotr_compute = 1;  // the program gives the virial
    centroidstressflag = CENTROID_NOTAVAIL;
  }

  ~PairEquiMol() override {
    if (!allocated) return;
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }

  void settings(int narg, char **) override {
    if (narg != 0) error->all(FLERR, "pair_style equimol takes no arguments, got {}; the file is named by pair_coeff", narg);
  }

  // pair_coeff * * FILE symbol of type 1, symbol of type 2, ...
  void coeff(int narg, char **arg) override {
    const int types = atom->ntypes;
    if (narg != 3 + types || strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0)
      error->all(FLERR, "pair_coeff of equimol is written * * FILE.pt2 and an element for each of {} atom types, got {} words", types, narg);
    read(arg[2]);
    type_of_.assign(types + 1, 0);
    for (int type = 1; type <= types; type++) {
      const auto found = std::find(symbols_.begin(), symbols_.end(), arg[2 + type]);
      if (found == symbols_.end()) {
        std::string known;
        for (const auto &symbol : symbols_) known += " " + symbol;
        error->all(FLERR, "atom type {} is element {}, which the model of {} does not know; it knows{}", type, arg[2 + type], arg[2], known);
      }
      type_of_[type] = found - symbols_.begin();
    }
    if (!allocated) {
      allocated = 1;
      memory->create(setflag, types + 1, types + 1, "pair:setflag");
      memory->create(cutsq, types + 1, types + 1, "pair:cutsq");
    }
    for (int i = 1; i <= types; i++)
      for (int j = 1; j <= types; j++) {
        setflag[i][j] = j >= i;
        cutsq[i][j] = cutoff_ * cutoff_;
      }
  }

  double init_one(int, int) override { return cutoff_; }

  void init_style() override {
    if (strcmp(update->unit_style, "metal") != 0)
      error->all(FLERR, "pair_style equimol needs units metal (eV, A), got units {}", update->unit_style);
    if (!force->newton_pair) error->all(FLERR, "pair_style equimol needs newton on, since it gives forces on ghost atoms");
    if (comm->mode != Comm::SINGLE) error->all(FLERR, "pair_style equimol needs comm_modify mode single");
    const double reach = hops_ * cutoff_ + neighbor->skin;
    if (comm->cutghostuser == 0.0) {
      comm->cutghostuser = reach;
      if (comm->me == 0)
        utils::logmesg(lmp, "pair_style equimol: ghost cutoff {} A for {} layers of {} A\n", reach, hops_, cutoff_);
    } else if (comm->cutghostuser < reach * (1.0 - BEYOND)) {
      error->all(FLERR, "the ghost cutoff must be {} A for {} layers of {} A, got {}; write: comm_modify cutoff {}", reach, hops_, cutoff_,
                 comm->cutghostuser, std::ceil(reach * 100.0) / 100.0);
    }
    neighbor->add_request(this, NeighConst::REQ_FULL | NeighConst::REQ_GHOST);
  }

  void compute(int eflag, int vflag) override {
    ev_init(eflag, vflag);
    if (vflag_atom) error->all(FLERR, "pair_style equimol has no stress of each atom; leave out compute stress/atom and heat flux");
    gather_atoms();
    const bool sane = ids_.empty() || run();
    check(sane);
  }

 private:
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> program_;
  std::vector<std::string> symbols_;
  std::vector<int64_t> type_of_;  // of a type of LAMMPS its place in symbols_
  std::vector<int64_t> sizes_;    // of arrays of indices in the program; grow as it asks for it
  double cutoff_ = 0.0;
  int hops_ = 0;

  std::vector<int> ids_;       // atoms of LAMMPS that the energies of local ones depend on, local ones first
  std::vector<int> place_;     // where each atom of LAMMPS stands among them, or -1
  std::vector<int64_t> senders_, receivers_, reverse_;
  std::vector<double> positions_;
  std::vector<int64_t> types_, first_;

  void read(const std::string &path) {
    std::unordered_map<std::string, std::string> facts;
    try {
      program_ = std::make_unique<torch::inductor::AOTIModelPackageLoader>(path);
      facts = program_->get_metadata();
    } catch (const std::exception &e) {
      const std::string text = e.what();
      error->one(FLERR, "{} cannot be read as a package; write one with: equimol export MODEL {} ({})", path, path, text.substr(0, text.find('\n')));
    }
    if (!facts.count("equimol.format")) error->all(FLERR, "{} holds no EquiMol model; write one with: equimol export MODEL {}", path, path);
    if (std::stoi(facts["equimol.format"]) > FORMAT)
      error->all(FLERR, "{} has package format {}, this plugin reads up to {}; build it anew with: equimol lammps build", path,
                 facts["equimol.format"], FORMAT);
    std::istringstream symbols(facts["equimol.symbols"]), sizes(facts["equimol.sizes"]);
    symbols_.clear();
    sizes_.clear();
    for (std::string word; symbols >> word;) symbols_.push_back(word);
    for (int64_t size; sizes >> size;) sizes_.push_back(size);
    cutoff_ = std::stod(facts["equimol.cutoff"]);
    hops_ = std::stoi(facts["equimol.hops"]);
  }

  // Local atoms and those that they depend on, up to as many edges away as there are layers; and the edges between them.
  void gather_atoms() {
    const int nlocal = atom->nlocal, nall = nlocal + atom->nghost;
    double **x = atom->x;
    place_.assign(nall, -1);
    ids_.resize(nlocal);
    first_.assign(1, 0);
    senders_.clear();
    receivers_.clear();
    std::vector<int> depth(nlocal, 0);
    for (int i = 0; i < nlocal; i++) ids_[i] = place_[i] = i;
    const double limit = cutoff_ * cutoff_;
    for (size_t n = 0; n < ids_.size(); n++) {  // grows meanwhile: first all local atoms, then their neighbours, and so on
      const int i = ids_[n];
      if (depth[n] < hops_) {
        const int *neighbours = list->firstneigh[i];
        for (int k = 0; k < list->numneigh[i]; k++) {
          const int j = neighbours[k] & NEIGHMASK;
          const double dx = x[j][0] - x[i][0], dy = x[j][1] - x[i][1], dz = x[j][2] - x[i][2];
          if (dx * dx + dy * dy + dz * dz >= limit) continue;
          if (place_[j] < 0) {
            place_[j] = ids_.size();
            ids_.push_back(j);
            depth.push_back(depth[n] + 1);
          }
          senders_.push_back(place_[j]);
        }
        std::sort(senders_.begin() + first_.back(), senders_.end());
      }
      receivers_.resize(senders_.size(), n);
      first_.push_back(senders_.size());
    }
    const size_t atoms = ids_.size();
    positions_.resize(3 * atoms);
    types_.resize(atoms);
    for (size_t n = 0; n < atoms; n++) {
      for (int k = 0; k < 3; k++) positions_[3 * n + k] = x[ids_[n]][k];
      types_[n] = type_of_[atom->type[ids_[n]]];
    }
    if (senders_.size() < 2) {  // programs are made for several atoms and edges: two more atoms, which do not count
      for (int n = 0; n < 2; n++) {
        for (int k = 0; k < 3; k++) positions_.push_back(n == 0 ? 0.0 : 0.5 * cutoff_ / std::sqrt(3.0));
        types_.push_back(0);
        senders_.push_back(atoms + 1 - n);
        receivers_.push_back(atoms + n);
        first_.push_back(senders_.size());
      }
    }
    reverse_.resize(senders_.size());
    for (size_t e = 0; e < senders_.size(); e++) {
      const auto begin = senders_.begin() + first_[senders_[e]], end = senders_.begin() + first_[senders_[e] + 1];
      const auto found = std::lower_bound(begin, end, receivers_[e]);
      // at the rim there is none: such an edge is too far away to count
      reverse_[e] = found != end && *found == receivers_[e] ? found - senders_.begin() : e;
    }
  }

  // Adds energies, forces and virial. False where some are not finite.
  bool run() {
    c10::InferenceMode guard;
    const auto whole = at::TensorOptions().dtype(at::kLong);
    const auto real = at::TensorOptions().dtype(at::kDouble);
    const int64_t atoms = types_.size(), edges = senders_.size();
    auto local = at::zeros({atoms}, at::TensorOptions().dtype(at::kBool));
    std::fill_n(local.data_ptr<bool>(), atom->nlocal, true);
    const std::vector<at::Tensor> structure = {
        at::from_blob(positions_.data(), {atoms, 3}, real),
        at::from_blob(types_.data(), {atoms}, whole),
        at::from_blob(senders_.data(), {edges}, whole),
        at::from_blob(receivers_.data(), {edges}, whole),
        at::zeros({edges, 3}, real),
        at::from_blob(reverse_.data(), {edges}, whole),
        local,
    };
    std::vector<at::Tensor> results;
    for (bool enough = false; !enough;) {
      auto arguments = structure;
      for (const auto size : sizes_) arguments.push_back(at::zeros({size}, whole));
      try {
        results = program_->run(arguments);
      } catch (const std::exception &e) {
        const std::string text = e.what();
        error->one(FLERR, "the model failed in step {}: {}", update->ntimestep, text.substr(0, text.find('\n')));
      }
      enough = true;
      const int64_t *needed = results[4].data_ptr<int64_t>();
      for (size_t n = 0; n < sizes_.size(); n++)
        if (needed[n] > sizes_[n]) {
          sizes_[n] = needed[n];
          enough = false;
        }
    }
    const double energy = results[0].item<double>();
    const auto energies = results[1].contiguous(), forces = results[2].contiguous(), virials = results[3].contiguous();
    const double *f = forces.data_ptr<double>(), *w = virials.data_ptr<double>();
    double sum = energy;
    for (size_t n = 0; n < ids_.size(); n++)
      for (int k = 0; k < 3; k++) {
        atom->f[ids_[n]][k] += f[3 * n + k];
        sum += f[3 * n + k];
      }
    if (eflag_global) eng_vdwl += energy;
    if (eflag_atom)
      for (int i = 0; i < atom->nlocal; i++) eatom[i] += energies.data_ptr<double>()[i];
    if (vflag_global) {
      constexpr int order[6] = {0, 4, 8, 1, 2, 5};  // xx, yy, zz, xy, xz, yz
      for (int k = 0; k < 6; k++) virial[k] += w[order[k]];
    }
    return std::isfinite(sum);
  }

  // Stops all ranks where one has nonsense, or where atoms were lost.
  void check(bool sane) {
    bigint mine[2] = {atom->nlocal, sane ? 0 : 1}, all[2];
    MPI_Allreduce(mine, all, 2, MPI_LMP_BIGINT, MPI_SUM, world);
    if (all[1])
      error->all(FLERR, "the model gave energies or forces that are NaN or infinite in step {}; look for atoms that are too close, and go back to the last good frame",
                 update->ntimestep);
    if (all[0] != atom->natoms)
      error->all(FLERR, "{} of {} atoms are left in step {}; use a shorter time step, or look for atoms that left an open boundary", all[0],
                 atom->natoms, update->ntimestep);
  }
};

// lammpsplugin.h is not among the headers of the wheel; its structure has been the same since 2021
struct Registration {
  const char *version, *style, *name, *info, *author;
  union {
    Pair *(*v1)(LAMMPS *);
    void *(*v2)(LAMMPS *, int, char **);
  } creator;
  void *handle;
};

Pair *create(LAMMPS *lmp) { return new PairEquiMol(lmp); }

}    // namespace

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *regfunc) {
  Registration plugin{};
  plugin.version = static_cast<LAMMPS *>(lmp)->version;
  plugin.style = "pair";
  plugin.name = "equimol";
  plugin.info = "EquiMol potentials as packages of AOTInductor";
  plugin.author = "The EquiMol authors";
  plugin.creator.v1 = &create;
  plugin.handle = handle;
  reinterpret_cast<void (*)(Registration *, void *)>(regfunc)(&plugin, lmp);
}
